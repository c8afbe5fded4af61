#!/usr/bin/env bash
# THE command for a machine with a GPU: verifies and measures everything in under 9 minutes. The machine needs a driver, the
# CUDA libraries (of a toolkit or of Python's nvidia-* packages) and, for what compares with it, Python with PyTorch; none of
# our packages. What runs is the pack that tests/gpu/pack.sh made elsewhere.
#
#   tests/gpu/run.sh [STEP...]           all steps, or these; they are the functions of tests/gpu/steps.sh
#
# Environment
#   OUT              where results.json, summary.txt and logs.tar.gz go; default build/gpu-results
#   MT_GPU_PACK      the pack; default build/gpu-pack/pack.tar.gz
#   MT_GPU_BACKEND   cuda (default). emulated or cpu walk every step without a GPU, on tiny shapes
#   MT_GPU_SECONDS   for the whole run; default 525. A step that does not fit into what is left is skipped
#   PYTHON           with PyTorch; default python3
#   MT_GPU_PEER      a torch_train.py to compare with, instead of bench/train_peer.py
#
# Every step is PASS, FAIL or SKIP with its reason, and the run goes on. Short tables come last; OUT has the long ones. Exit 1 if a step failed. Without
# a GPU the pack is shown to start, "skipped: no CUDA device" is said, and the exit status is 0.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export MT_GPU_BACKEND=${MT_GPU_BACKEND:-cuda} PYTHON=${PYTHON:-python3} ROOT=$root
results=${OUT:-$root/build/gpu-results}
mkdir -p "$results"
results=$(cd "$results" && pwd)
WORK=$(mktemp -d /tmp/mt-gpu.XXXXXX)
export WORK OUT=$WORK/out TABLES=$WORK/out/tables TORCHINDUCTOR_CACHE_DIR=$WORK/inductor
mkdir -p "$TABLES"
started=$SECONDS
limit=${MT_GPU_SECONDS:-525}

logger=
# Whatever a step that was cut off has left running, so that nothing disturbs what is timed after it.
stop_leftovers() {
  local state process
  for state in "$WORK"/*/work/state; do
    [ ! -d "$state" ] || MT_CONFIG_DIR=$state/../config timeout 20 "$WORK/pack/bin/mtctl" -q dev down --state "$state" --now > /dev/null 2>&1
  done
  for process in /proc/[0-9]*; do
    case $(readlink "$process/exe") in "$WORK"/pack/*) kill -9 "${process##*/}" 2> /dev/null ;; esac
  done
}
finish() {
  stop_leftovers
  [ -z "$logger" ] || kill "$logger" 2> /dev/null
  collect
  rm -rf "$WORK"
}
strings() { sed 's/[\\"]/\\&/g; s/.*/"&"/' "$1" 2> /dev/null | paste -sd, -; }  # a file's lines in JSON
# One JSON object with a member per file, the summary, and everything else in an archive.
collect() {
  local file
  {
    printf '{"commit": %s,\n"date": "%s",\n"machine": [%s]' "$(strings "$WORK/pack/COMMIT")" "$(date -u +%FT%TZ)" "$(strings "$OUT/machine.txt")"
    for file in "$OUT"/*.json; do
      [ -s "$file" ] || continue
      printf ',\n"%s": ' "$(basename "$file" .json)"
      cat "$file"
    done
    printf ',\n"steps": [%s]}\n' "$(strings "$OUT/steps.txt")"
  } > "$results/results.json"
  cat "$TABLES"/* "$OUT/steps.txt" > "$results/summary.txt" 2> /dev/null
  tar -C "$OUT" -czf "$results/logs.tar.gz" .
}
trap finish EXIT
. "$here/steps.sh"

left() { echo $((limit - (SECONDS - started))); }

# step NAME SECONDS [always]: runs step_NAME in a process of its own with its own log; says how it ended.
step() {
  local name=$1 seconds=$2 code=0 begin=$SECONDS verdict reason
  [ $# -lt 3 ] && [ "$(left)" -lt "$seconds" ] && seconds=$(left)
  if [ "$seconds" -lt 5 ]; then
    code=77
    echo "no time left" > "$OUT/$name.log"
  else
    timeout --kill-after=5 "$seconds" bash -uo pipefail -c ". '$here/steps.sh'; step_$name" > "$OUT/$name.log" 2>&1 || code=$?
  fi
  reason=$(grep -v '^$' "$OUT/$name.log" | tail -n 1 | cut -c1-110)
  case $code in
    0) verdict=PASS ;;
    77) verdict=SKIP ;;
    124 | 137) verdict=FAIL reason="took more than $seconds s; $reason" ;;
    *) verdict=FAIL ;;
  esac
  printf '%-15s %-4s %4d s  %s\n' "$name" "$verdict" $((SECONDS - begin)) "$reason" | tee -a "$OUT/steps.txt"
  [ "$verdict" = PASS ] || sed 's/^/    /' <(tail -n 12 "$OUT/$name.log")
}
# Steps that are not timed share the machine.
together() {
  local names=() pids=() name
  while [ $# -gt 0 ]; do
    step "$1" "$2" > "$WORK/$1.said" &
    names+=("$1")
    pids+=($!)
    shift 2
  done
  wait "${pids[@]}"
  for name in "${names[@]}"; do cat "$WORK/$name.said"; done
}

unpack || { echo "tests/gpu/run.sh: no pack: run tests/gpu/pack.sh on a build machine" >&2; exit 1; }
echo "commit $(cat "$WORK/pack/COMMIT")"
find_libraries
step start 60
if [ "$MT_GPU_BACKEND" = cuda ] && ! has_gpu; then
  echo "skipped: no CUDA device"
  grep -q ' FAIL ' "$OUT/steps.txt" && exit 1
  exit 0
fi
if command -v nvidia-smi > /dev/null; then
  # Also keeps the driver awake between steps.
  nvidia-smi --query-gpu=timestamp,clocks.sm,power.draw,temperature.gpu,memory.used --format=csv -l 1 > "$OUT/clocks.csv" 2>&1 &
  logger=$!
fi
if [ $# -gt 0 ]; then
  for name in "$@"; do step "$name" 500; done
else
  # What matters least comes last: it is what there may be no time for.
  together machine 60 conformance 150 attention_flash 150 attention_cudnn 150 memcheck 150 racecheck 150 golden 100 cluster 150 compile 170
  stop_leftovers
  step ranks 75
  step ceilings 30
  step bench_a_bf16 75
  step peer_a_autocast 110
  step peer_a_pure 110
  step bench_a_fp8 75
  step kernels 45
  step bench_b_bf16 45
  step peer_b_autocast 90
  step peer_b_pure 90
  step bench_b_fp8 45
  step experts 60
fi
step tables 20 always

echo
cat "$TABLES"/* 2> /dev/null
echo
cat "$OUT/steps.txt"
echo "commit $(cat "$WORK/pack/COMMIT") · $((SECONDS - started)) s · results.json and logs in $results"
! grep -q ' FAIL ' "$OUT/steps.txt"
