#!/usr/bin/env bash
# The whole way from JSONL to a Megatron .bin/.idx pair, beside that of Megatron's preprocess_data.py, in one run over one corpus with
# one tokenizer.json. The pairs must be equal byte for byte, or the run fails. Figures go to bench/results/.
#
#   bench/data_build/run.sh --corpus FILE.jsonl --tokenizer tokenizer.json [--python PYTHON] [--build FOLDER] [--peer-lines N]
#
# The python needs megatron-core and tokenizers from PyPI. The peer is slow: it gets the first N lines (default 20,000), and ours gets
# them too for the comparison; all of the corpus then gives our own figures, by thread, with the share of time of each stage.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build python=python3 lines=20000 corpus="" tokenizer=""
while [ $# -gt 0 ]; do
  case $1 in
    --corpus) corpus=$2 ;;
    --tokenizer) tokenizer=$2 ;;
    --python) python=$2 ;;
    --build) build=$2 ;;
    --peer-lines) lines=$2 ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift 2
done
[ -n "$corpus" ] && [ -n "$tokenizer" ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -n "$lines" "$corpus" > "$work/part.jsonl"
cores=$(nproc)
ours() {  # threads, input, prefix
  MT_CONFIG_DIR=$work/none "$build/bin/mtctl" -q data build "$2" --tokenizer "$tokenizer" --threads "$1" --overwrite --output "$3" -o json
}
ours 1 "$work/part.jsonl" "$work/ours" > "$work/first.json"
read -r eod vocab < <("$python" - "$work/ours" <<'PYTHON'
import json, struct, sys
manifest = json.load(open(sys.argv[1] + ".manifest.json"))
size = 2 if manifest["token_type"] == "uint16" else 4
data = open(sys.argv[1] + ".bin", "rb").read()[-size:]
print(struct.unpack("<H" if size == 2 else "<i", data)[0], manifest["tokenizer"]["vocab_size"])
PYTHON
)
: > "$work/results"
for threads in 1 "$cores"; do
  "$python" "$root/bench/data_build/peer.py" --input "$work/part.jsonl" --tokenizer "$tokenizer" --eod "$eod" --vocab "$vocab" \
    --workers "$threads" --output "$work/peer" 2>/dev/null | tail -1 > "$work/peer.json"
  ours "$threads" "$work/part.jsonl" "$work/ours" > "$work/part.json"
  cmp "$work/ours.bin" "$work/peer.bin" && cmp "$work/ours.idx" "$work/peer.idx" || { echo "the pairs differ" >&2; exit 1; }
  ours "$threads" "$corpus" "$work/all" > "$work/all.json"
  echo "$threads $(tr -d '\n' < "$work/peer.json")|$(tr -d '\n' < "$work/part.json")|$(tr -d '\n' < "$work/all.json")" >> "$work/results"
done
commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
machine="$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $cores cores, load $(cut -d' ' -f1 /proc/loadavg)"
mkdir -p "$root/bench/results"
"$python" - "$work" "$commit" "$machine" "$root/bench/results/$(date -u +%Y-%m-%d)-data-build-$commit.json" <<'PYTHON'
import datetime, json, os, sys
work, commit, machine, result = sys.argv[1:]
part = os.path.getsize(f"{work}/part.jsonl")
rows = []
for line in open(f"{work}/results"):
    threads, rest = line.split(" ", 1)
    peer, ours, whole = (json.loads(text) for text in rest.split("|"))
    stages = whole["thread_seconds"]
    total = sum(stages.values())
    rows.append({
        "threads": int(threads),
        "peer": {"MB/s": round(part / 1e6 / peer["seconds"], 2), "documents/s": round(peer["documents"] / peer["seconds"])},
        "mt, the same lines": {"MB/s": round(part / 1e6 / ours["seconds"], 2), "documents/s": round(ours["documents"] / ours["seconds"])},
        "ratio": round(peer["seconds"] / ours["seconds"], 1),
        "mt, whole corpus": {"MB": round(whole["input_bytes"] / 1e6, 1), "MB/s": round(whole["input_bytes"] / 1e6 / whole["seconds"], 2),
                             "tokens/s": round(whole["tokens"] / whole["seconds"]),
                             "share of thread time": {name: round(seconds / total, 3) for name, seconds in stages.items()}},
    })
json.dump({"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": commit, "machine": machine,
           "command": "bench/data_build/run.sh", "rows": rows}, open(result, "w"), indent=1)
print(json.dumps(rows, indent=1))
print(f"kept in {result}")
PYTHON
