#!/usr/bin/env bash
# An environment of its own for the authors' package, whose pins (torch < 2.10, huggingface-hub < 1, numpy < 2.3) clash
# with affetto's: benchmarks/parity/moshi_environment.sh FOLDER
#
# The pins are left aside (--no-deps): only the language model, Mimi and SentencePiece are used here, and they run with
# current versions. sounddevice, aiohttp and bitsandbytes, which the package's server wants, are not needed.
set -euo pipefail
folder=${1:?where the environment goes}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy safetensors huggingface-hub einops sentencepiece tqdm sphn
"$folder/bin/pip" install --quiet --no-deps moshi==0.2.13
"$folder/bin/python" -c "from moshi.models import loaders; print('moshi works in', '$folder')"
