#!/usr/bin/env bash
# Runs hub_proof.py with a Python that has transformers: MT_PYTHON, else python3. Exit 77 (skipped) where there is none; the
# product needs no Python.
#   tests/golden/hub_proof.sh BUILD/bin [CASE...]
set -euo pipefail
python=${MT_PYTHON:-python3}
"$python" -c 'import safetensors, torch, transformers' 2> /dev/null || {
  echo "skipped: no Python with transformers (tests/golden/requirements.txt); MT_PYTHON names one"
  exit 77
}
exec "$python" "$(dirname "$0")/hub_proof.py" "$@"
