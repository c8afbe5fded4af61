#!/usr/bin/env bash
# What the built plug-in promises a machine without CUDA: it exports its entry alone, needs no library of NVIDIA's and no driver,
# and finds what lies beside it.
#   kernels/cuda/plugin_test.sh LIBRARY
set -euo pipefail
library=$1
fail() { echo "plugin_test.sh: $*" >&2; exit 1; }

exported=$(nm -D --defined-only "$library" | awk '{ print $3 }')
[ "$exported" = mt_backend_entry_v1 ] || fail "exports $exported"

dynamic=$(readelf -d "$library")
while read -r needed; do
  [[ $needed =~ ^(ld-linux-x86-64|libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+)\.so ]] || fail "needs $needed"
done < <(sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' <<<"$dynamic")
[[ $dynamic == *'Library runpath: [$ORIGIN]'* ]] || fail 'its run path is not $ORIGIN'
echo "plugin_test.sh: $(stat -c %s "$library") bytes, one symbol, no library of NVIDIA's"
