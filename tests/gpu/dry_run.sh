#!/usr/bin/env bash
# What can be tested of run.sh without a GPU: the pack starts where nothing but glibc is installed, and says that there is no
# CUDA device; then every step walks on a backend of the processor, on tiny shapes.
#   tests/gpu/dry_run.sh BUILD_FOLDER [BACKEND]      cpu (default) or emulated; as root, 77 = skipped
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$1" && pwd)
[ "$(id -u)" = 0 ] || { echo "skipped: needs root" >&2; exit 77; }
folder=$(mktemp -d /tmp/mt-gpu-dry.XXXXXX)
trap 'rm -rf "$folder"' EXIT
MT_GPU_PACK_WITHOUT_CUDNN=1 "$here/pack.sh" "$build" > "$folder/pack.log" 2>&1 || { tail -n 20 "$folder/pack.log" >&2; exit 1; }
tail -n 1 "$folder/pack.log"

# The machine's libraries, less all that the tools of run.sh do not need themselves.
mkdir "$folder/lib"
libraries=/lib/x86_64-linux-gnu
for name in libc libm libpthread libdl librt libresolv ld-linux-x86-64; do cp -L $libraries/$name.so.* "$folder/lib/"; done
for tool in bash awk sed grep tar gzip timeout tee sort mktemp ls; do
  ldd "$(readlink -f "$(command -v $tool)")" | awk '$2 == "=>" { print $3 }' | xargs -r -I{} cp -nL {} "$folder/lib/"
done
unshare --mount bash -euc '
  mount --make-rprivate /
  [ ! -d /usr/local/cuda/lib64 ] || mount -t tmpfs tmpfs "$(readlink -f /usr/local/cuda/lib64)"
  mount --bind "$1/lib" "$(readlink -f '$libraries')"
  PYTHON=/nonexistent OUT="$1/bare" exec "$2/run.sh"' bare "$folder" "$here" | tee "$folder/bare.txt"
grep -q '^skipped: no CUDA device$' "$folder/bare.txt"

export OUT=${OUT:-$folder/out}
MT_GPU_BACKEND=${2:-cpu} MT_GPU_SECONDS=${MT_GPU_SECONDS:-900} "$here/run.sh"
python3 -c 'import json, sys; print("results.json has", ", ".join(json.load(open(sys.argv[1]))))' "$OUT/results.json"
