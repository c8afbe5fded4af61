#!/usr/bin/env bash
# Everything a change must pass: dependencies, style, build with warnings as errors, tests.
#   tests/run.sh                   all: unit, cluster, slow, gpu (which are skipped where there is no GPU)
#   tests/run.sh unit cluster      only these ctest labels
#   tests/run.sh -R regex [...]    further arguments go to ctest
# Where there is a CUDA toolkit its backend is built too, for one architecture, which takes a third of the time of all;
# CUDA_ARCHITECTURES=... names others.
# JOBS=n sets how much runs at once (default: the number of cores).
set -euo pipefail
cd "$(dirname "$0")/.."

jobs=${JOBS:-$(nproc)}
labels=()
while [ $# -gt 0 ] && [[ $1 =~ ^(unit|cluster|slow|gpu)$ ]]; do
  labels+=("$1")
  shift
done
[ ${#labels[@]} -gt 0 ] || labels=(unit cluster slow gpu)

deploy/install-deps.sh
tests/style.sh

log=$(mktemp)
trap 'rm -f "$log"' EXIT
run_quietly() {  # what, command...: shows the output only of a command that fails
  local what=$1
  shift
  if ! "$@" >"$log" 2>&1; then
    tail -n 100 "$log" >&2
    echo "tests/run.sh: FAILED: $what" >&2
    exit 1
  fi
}
run_quietly configure cmake --preset release -DMT_WERROR=ON -DMT_BUILD_TESTS=ON \
  -DMT_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-90a-real}"
run_quietly build cmake --build build -j "$jobs"

started=$(date +%s)
failed=()
total=0 found=0
for label in "${labels[@]}"; do
  # Unit tests run side by side; cluster and slow tests start processes of their own and get the machine to themselves.
  parallel=1
  [ "$label" = unit ] && parallel=$jobs
  if ! ctest --test-dir build -L "^$label\$" -j "$parallel" --output-on-failure --no-tests=ignore "$@" >"$log" 2>&1; then
    failed+=("$label")
    sed -n '/Start/!p' "$log" >&2
  fi
  count=$(sed -n 's/^.*tests failed out of \([0-9]*\)$/\1/p' "$log" | tail -n 1)
  passed=$(sed -n 's/^\([0-9]*\)% tests passed, \([0-9]*\) tests failed out of \([0-9]*\)$/\1% of \3 passed, \2 failed/p' "$log" | tail -n 1)
  skipped=$(grep -c '(Skipped)$' "$log" || true)
  found=$((found + ${count:-0}))
  total=$((total + ${count:-0} - skipped))
  reason=
  [ "$skipped" = 0 ] || reason=", $skipped skipped"
  [ "$label" != gpu ] || [ "$skipped" = 0 ] || reason="$reason: no CUDA device"
  echo "$label: ${passed:-no tests}$reason"
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "tests/run.sh: FAILED: ${failed[*]}" >&2
  exit 1
fi
if [ "$found" -eq 0 ]; then
  echo "tests/run.sh: FAILED: no test ran" >&2
  exit 1
fi
echo "tests/run.sh: ${labels[*]} in $(($(date +%s) - started)) s"
echo "$total passed, 0 failed"
