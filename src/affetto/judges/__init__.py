"""Models that listen: which emotion, which words, how good the sound, whose voice."""

import os

# oneDNN keeps what it compiled for each length of sound, 1024 of them unless told before its first call: 0.2 GB after a
# thousand files, for no time that could be measured (docs/log.md).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
