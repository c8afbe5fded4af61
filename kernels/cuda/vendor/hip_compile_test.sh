#!/usr/bin/env bash
# hip_compile_test.sh FILE.cu...: AMD's compiler accepts the portable kernels, warnings as errors, for a chip whose waves have 64
# threads (gfx90a) and one whose waves have 32 (gfx1030). Nothing is run. Exit 77 where there is no hipcc.
set -euo pipefail
cd "$(dirname "$0")/../../.."

if ! command -v hipcc >/dev/null; then
  echo "skipped: no hipcc here (deploy/install-deps.sh installs it)"
  exit 77
fi
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# Loops that the compiler leaves rolled are a matter of speed on a chip that nobody has here.
compile() {
  hipcc -x hip --offload-arch=gfx90a --offload-arch=gfx1030 -std=c++20 -O1 -Wall -Wextra -Werror -Wno-unused-parameter \
    -Wno-missing-field-initializers -Wno-pass-failed -DMT_VENDOR_HIP -I. -c "$1" -o /dev/null >"$2/$(basename "$1").log" 2>&1 ||
    touch "$2/$(basename "$1").failed"
}
export -f compile
printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c 'compile "$1" "$2"' _ {} "$logs"

failed=0
for mark in "$logs"/*.failed; do
  [ -e "$mark" ] || continue
  failed=1
  echo "hipcc does not accept $(basename "$mark" .failed):" >&2
  head -n 40 "${mark%.failed}.log" >&2
done
[ $failed -eq 0 ] && echo "$(hipcc --version 2>/dev/null | head -n 1): $# files"
exit $failed
