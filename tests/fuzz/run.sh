#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for a while. Exit 0: nothing was found.
#   tests/fuzz/run.sh [seconds per target, default 60] [target...]
# What is found stays in build-fuzz/artifacts/<target>/; replay it with build-fuzz/fuzz/<target> FILE.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
shift || true
command -v clang++ >/dev/null || { echo "tests/fuzz/run.sh: needs clang++ (apt-get install clang)" >&2; exit 1; }
cmake -S . -B build-fuzz -G Ninja -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DMT_FUZZ=ON -DMT_BUILD_TESTS=OFF -DMT_SANITIZE=address,undefined \
  -DCMAKE_CXX_FLAGS="-fsanitize=fuzzer-no-link -fno-sanitize-recover=undefined -Wno-unknown-warning-option" >/dev/null
targets=("$@")
cmake --build build-fuzz --target $([ $# -eq 0 ] && echo fuzz_all || printf 'fuzz_%s ' "$@") -j "${JOBS:-$(nproc)}" >build-fuzz/build.log || { tail -n 40 build-fuzz/build.log >&2; exit 1; }

[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd build-fuzz/fuzz && ls)
found=()
for target in "${targets[@]}"; do
  mkdir -p "build-fuzz/corpus/$target" "build-fuzz/artifacts/$target"
  log=build-fuzz/$target.log
  if build-fuzz/fuzz/"$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="build-fuzz/artifacts/$target/" "build-fuzz/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
    echo "$target: nothing found in $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs"
  else
    found+=("$target")
    grep -m 3 -E 'ERROR|SUMMARY|CHECK|runtime error' "$log" >&2 || tail -n 20 "$log" >&2
    echo "$target: FOUND something; see $log" >&2
  fi
done
[ ${#found[@]} -eq 0 ] || { echo "tests/fuzz/run.sh: FAILED: ${found[*]}" >&2; exit 1; }
