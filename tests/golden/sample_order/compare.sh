#!/usr/bin/env bash
# Runs compare.py with a Python that has megatron-core: MT_PYTHON, else python3. Exit 77 (skipped) where there is none; the product
# needs no Python.
#   tests/golden/sample_order/compare.sh BUILD/bin [CASES [SEED]]
set -euo pipefail
python=${MT_PYTHON:-python3}
"$python" -c 'import megatron.core, numpy, torch' 2> /dev/null || {
  echo "skipped: no Python with megatron-core (make_golden.py says what to install); MT_PYTHON names one"
  exit 77
}
exec "$python" "$(dirname "$0")/compare.py" "$@"
