#!/usr/bin/env bash
# How long people wait, on a warm loopback cluster of two nodes with one slot each: from `mtctl submit` (before the program is
# started) to the first completed step, and from kill -9 of a rank to the next completed step. Both ends are wall-clock
# times: the beginning is taken here, the end is the time of the job's `job_running` event. The model is small, so that the
# figures are those of starting, finding, stopping and restoring, and not of the step.
#
#   bench/latency.sh [--build FOLDER] [--rounds N]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build rounds=5
while [ $# -gt 0 ]; do
  case $1 in
    --build) build=$2 ;;
    --rounds) rounds=$2 ;;
    *) echo "usage: $0 [--build FOLDER] [--rounds N]" >&2; exit 2 ;;
  esac
  shift 2
done
work=$(mktemp -d -t mt-latency.XXXXXX)
export PATH=$build/bin:$PATH MT_CONFIG_DIR=$work/config
cleanup() {
  mtctl -q dev down --now --state "$work/state" > /dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

cat /usr/share/common-licenses/GPL-3 /usr/share/common-licenses/Apache-2.0 > "$work/text.txt"
mtctl -q data build "$work/text.txt" --tokenizer byte --output "$work/text" > /dev/null
cat > "$work/job.yaml" <<EOF
name: latency
model: {layers: 2, hidden: 128, heads: 4, kv_heads: 2, ffn: 256}
data: {train: $work/text, tokenizer: byte, sequence_length: 64}
training: {steps: 100000, global_batch: 4, micro_batch: 2}
parallel: {data: 2}
checkpoint: {every_steps: 50}
EOF
mtctl -q dev up --nodes 2 --slots 1 --state "$work/state" > /dev/null

python3 - "$work/job.yaml" "$rounds" <<'EOF'
import datetime, json, os, statistics, subprocess, sys, time

def mtctl(*arguments):
    return json.loads(subprocess.run(["mtctl", "-q", *arguments, "-o", "json"], check=True, stdout=subprocess.PIPE).stdout or "null")

def until(what, question):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.05)
    sys.exit(f"not within 60 s: {what}")

def first_step(job, attempt):  # Unix time of the first completed step of that attempt
    for event in mtctl("events", job):
        if event["kind"] == "job_running" and event["attempt"] == attempt:
            return datetime.datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp()

spec, rounds = sys.argv[1], int(sys.argv[2])
starts, recoveries = [], []
load = os.getloadavg()[0]
for round in range(rounds + 1):  # the first warms the page cache and does not count
    began = time.time()
    job = mtctl("submit", spec)["id"]
    start = until("the first step", lambda: first_step(job, 1)) - began
    until("a checkpoint", lambda: mtctl("status", job).get("last_checkpoint_step", -1) >= 50)
    victim = mtctl("status", job)["ranks"][1]["pid"]
    killed = time.time()
    os.kill(victim, 9)
    recovery = until("a step after the kill", lambda: first_step(job, 2)) - killed
    subprocess.run(["mtctl", "-q", "cancel", job], check=True, stdout=subprocess.DEVNULL)
    until("the job has ended", lambda: mtctl("status", job)["state"] == "cancelled")
    if round > 0:
        starts.append(start)
        recoveries.append(recovery)
for name, values in (("submit -> first step", starts), ("kill -9 of a rank -> next step", recoveries)):
    print(f"{name:32} median {statistics.median(values):.2f} s, min {min(values):.2f}, max {max(values):.2f} ({len(values)} times)")
print(f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores; {time.strftime('%F')}")
EOF
