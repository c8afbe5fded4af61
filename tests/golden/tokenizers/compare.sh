#!/usr/bin/env bash
# compare.sh BIN CORPUS [compare.py's options]: ids of mt against Hugging Face's and tiktoken's on all of the corpus (239 MB from
# Debian packages), which is made in CORPUS first if it is not there. BIN is the folder of mt_tokenize_bench. MT_PYTHON names a
# Python with tokenizers, tiktoken and numpy (requirements.txt). Takes about an hour of processor time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$1 corpus=$2
shift 2
python=${MT_PYTHON:-python3}
[ -e "$corpus/adversarial.docs" ] || "$python" "$here/make_corpus.py" "$corpus"
exec "$python" "$here/compare.py" "$bin/mt_tokenize_bench" "$corpus" "$@"
