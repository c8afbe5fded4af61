#!/usr/bin/env bash
# Compares one rank with PyTorch in one run, at the default shape, and keeps the figures in bench/results/.
#
#   bench/run.sh [--build FOLDER] [--python PYTHON] [--threads N] [--rounds N] [--steps N]
#
# Without --python a virtual environment is made in build/bench-venv and PyTorch installed from PyPI (once). Both programs train
# the same model from the same weights on the same tokens, in turn, `rounds` times; the best median step of each counts, so that
# what else the machine does falls on both alike. Their losses must agree, or the run fails.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build python="" threads=2 rounds=3 steps=15
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2 ;;
    --python) python=$2 ;;
    --threads) threads=$2 ;;
    --rounds) rounds=$2 ;;
    --steps) steps=$2 ;;
    *) echo "usage: $0 [--build FOLDER] [--python PYTHON] [--threads N] [--rounds N] [--steps N]" >&2; exit 2 ;;
  esac
  shift 2
done
[ -x "$build/bin/mt-bench" ] || { echo "$build/bin/mt-bench is missing: cmake --preset release && ninja -C build mt-bench" >&2; exit 1; }
if [ -z "$python" ]; then
  python=$build/bench-venv/bin/python
  if ! "$python" -c 'import torch' 2>/dev/null; then
    python3 -m venv "$build/bench-venv"
    "$build/bench-venv/bin/pip" install --quiet torch
  fi
fi
export OPENBLAS_CORETYPE=${OPENBLAS_CORETYPE:-SKYLAKEX}  # only a PyTorch built on OpenBLAS reads it (Debian's)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
common=(--tokens "$work/tokens.bin" --threads "$threads" --steps "$steps" --warmup $((steps / 3)))
mkdir "$work/weights"
"$build/bin/mt-bench" "${common[@]}" --write-tokens --weights-out "$work/weights" >"$work/first.json" 2>/dev/null
for round in $(seq "$rounds"); do
  "$python" -W ignore "$root/bench/train_peer.py" "${common[@]}" --weights "$work/weights" 2>/dev/null | tail -1 | tee -a "$work/peer.jsonl" | cut -c1-120
  "$build/bin/mt-bench" "${common[@]}" 2>>"$work/phases.txt" | tail -1 | tee -a "$work/ours.jsonl" | cut -c1-120
done

commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
git -C "$root" diff --quiet HEAD 2>/dev/null || commit=$commit+changes
machine="$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg)"
result=$root/bench/results/$(date -u +%Y-%m-%d)-train-${commit}.json
mkdir -p "$root/bench/results"
"$python" - "$work" "$commit" "$machine" "$result" <<'PYTHON'
import datetime, json, sys
work, commit, machine, result = sys.argv[1:]
read = lambda name: [json.loads(line) for line in open(f"{work}/{name}")]
ours, peer = read("ours.jsonl"), read("peer.jsonl")
difference = max(abs(a - b) for a, b in zip(ours[0]["losses"], peer[0]["losses"]))
if difference > 2e-3:
    sys.exit(f"losses differ by {difference}: the two programs do not compute the same thing\n{ours[0]['losses']}\n{peer[0]['losses']}")
best = lambda runs: max(runs, key=lambda run: run["tokens_per_second"])
row = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit, "machine": machine,
       "command": "bench/run.sh", "mt": best(ours), "peer": best(peer), "rounds": len(ours), "largest_loss_difference": difference,
       "tokens_per_second": {"mt": [run["tokens_per_second"] for run in ours], "peer": [run["tokens_per_second"] for run in peer]},
       "ratio": round(best(ours)["tokens_per_second"] / best(peer)["tokens_per_second"], 3)}
json.dump(row, open(result, "w"), indent=1)
print(open(f"{work}/phases.txt").readlines()[-1].strip())
print(f"mt {row['mt']['tokens_per_second']} tokens/s, {row['peer']['program']} {row['peer']['tokens_per_second']} tokens/s: "
      f"ratio {row['ratio']} (losses agree to {difference:.1e}); kept in {result}")
PYTHON
