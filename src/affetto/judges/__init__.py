"""Models that listen: which emotion, which words, how good the sound, whose voice."""

import os

# oneDNN caches what it compiles for each length of sound, by default 1024 of them: 0.2 GB after a thousand files, for
# no measurable gain (docs/log.md). The limit must be set before its first call.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
