#!/usr/bin/env bash
# What every CUDA kernel takes: registers, shared memory, stack, spills, as the assembler tells (-Xptxas -v). Fails if a kernel
# spills, unless COLD below names it: a spill is traffic to memory in the middle of arithmetic.
#
#   kernels/cuda/resources.sh [--all] [ARCHITECTURE...]     default 80 90a 100; sizes in bytes
#
# Prints the kernels that spill or take more than 128 registers, and a line per architecture; --all prints every kernel. What was
# compiled before from the same sources is not compiled again (build/resources). 77: no nvcc here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cache=${MT_RESOURCES:-$root/build/resources}
# Kernels in which a spill does not count (extended regular expression on the name): the portable attention, which runs where
# the tensor cores' cannot, and head sizes past 128.
COLD='^Flash(Forward|KeyBackward|QueryBackward)<|<256'

all=0
[ "${1:-}" != --all ] || { all=1; shift; }
[ $# -gt 0 ] || set -- 80 90a 100
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2> /dev/null) || { echo "skipped: no nvcc" >&2; exit 77; }
mkdir -p "$cache"
headers=$(cd "$root" && cat kernels/abi/*.h kernels/cuda/*.h kernels/cuda/vendor/*.h | sha256sum)

# FILE ARCHITECTURE: the assembler's words, from the cache if nothing has changed.
compile() {
  local key report
  key=$( (cat "$1"; echo "$headers $2"; "$nvcc" --version) | sha256sum | cut -c1-24)
  report=$cache/$(basename "$1" .cu)-$2-$key.txt
  if [ ! -f "$report" ]; then
    "$nvcc" -std=c++20 -O3 -DNDEBUG --expt-relaxed-constexpr -I"$root" -gencode "arch=compute_$2,code=sm_$2" -Xptxas -v -cubin \
      -o "$report.cubin" "$1" > "$report.new" 2>&1 || { cat "$report.new" >&2; return 1; }
    rm -f "$report.cubin" "$cache/$(basename "$1" .cu)-$2"-*.txt
    mv "$report.new" "$report"
  fi
  cat "$report"
}

# Lines: registers, shared memory, stack frame, spill stores, spill loads, name.
table() {
  c++filt | awk '/Compiling entry function/ { name = $0; sub(/^[^\047]*\047/, "", name); sub(/\047 for .*/, "", name) }
    /bytes stack frame/ { frame = stores = loads = 0; for (i = 1; i < NF; ++i) {
        if ($(i + 2) == "stack") frame = $i; if ($(i + 2) == "spill" && $(i + 3) ~ /stores/) stores = $i; if ($(i + 2) == "spill" && $(i + 3) ~ /loads/) loads = $i } }
    /Used [0-9]+ registers/ { registers = shared = 0; for (i = 1; i <= NF; ++i) { if ($(i + 1) ~ /^registers/) registers = $i; if ($(i + 2) ~ /^smem/) shared = $i }
        gsub(/\(anonymous namespace\)::|mt::cuda::|mt_|^void /, "", name); sub(/\(.*/, "", name); print registers + 0, shared + 0, frame, stores, loads, name }'
}

failed=0
for architecture in "$@"; do
  rows=$(for file in "$here"/*.cu; do compile "$file" "$architecture" || exit 1; done | table)
  printf 'sm_%s\n%9s %7s %6s %7s %6s  %s\n' "$architecture" registers shared stack stores loads kernel
  awk -v all=$all '{ name = $0; for (i = 0; i < 5; ++i) sub(/^[0-9]+ /, "", name); if (all || $1 > 128 || $3 + $4 + $5 > 0) printf "%9d %7d %6d %7d %6d  %.110s\n", $1, $2, $3, $4, $5, name }' <<< "$rows" | sort -k1,1nr
  spilling=$(awk -v cold="$COLD" '{ name = $0; for (i = 0; i < 5; ++i) sub(/^[0-9]+ /, "", name); if ($4 + $5 > 0 && name !~ cold) ++n } END { print n + 0 }' <<< "$rows")
  echo "sm_$architecture: $(wc -l <<< "$rows") kernels, most registers $(cut -d' ' -f1 <<< "$rows" | sort -n | tail -n 1), $spilling spill"
  [ "$spilling" = 0 ] || failed=1
done
[ $failed = 0 ] || { echo "resources: FAILED: kernels spill" >&2; exit 1; }
