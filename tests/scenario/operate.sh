#!/usr/bin/env bash
# What an operator does to jobs on a loopback cluster: pause and resume, drain and undrain, a rank that hangs, kill -9 of the
# coordinator under a follower, cancel, a resume under another layout, and another size of the cluster on the same state.
# Every job must end as if nothing had happened: with the digest of the undisturbed run.
#   tests/scenario/in_sandbox.sh tests/scenario/operate.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
work=$MT_SCENARIO_FOLDER/work
mkdir -p "$work"
cd "$work"
export PATH=$bin:$PATH MT_CONFIG_DIR=$work/config
state=$work/state
job=

report() {  # on the way out of a failure
  local code=$?
  [ "$code" = 0 ] && return
  echo "--- FAILED (exit $code); coordinator's log:" >&2
  tail -n 25 "$state/coordinator.log" >&2 || true
  [ -z "$job" ] || { mtctl events "$job" >&2; mtctl describe "$job" >&2; } || true
}
trap report EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

field() { python3 -c 'import json,sys
value = json.load(sys.stdin)
for key in sys.argv[1].split("."):
    value = value[int(key)] if isinstance(value, list) else value.get(key, {} if not key.isdigit() else None)
print(value if value not in ({}, None) else "")' "$1"; }
status() { mtctl status "$job" -o json | field "$1"; }
step_is_past() { local step; step=$(status progress.step) || return 1; [ "${step:-0}" -ge "$1" ]; }
state_is() { [ "$(status state)" = "$1" ]; }
reason_has() { [[ "$(status reason)" == *"$1"* ]]; }
slots_used() { mtctl cluster status -o json | field slots_used; }
no_workers() { ! pgrep mt-worker >/dev/null; }
no_ranks() { ! pgrep -f "mt-worker rank" >/dev/null; }
submit() { job=$(mtctl -q submit job.yaml "$@"); }
same_digest() {  # what was done
  mtctl -q wait "$job" --timeout 2m
  local digest
  digest=$(mtctl checkpoint show --digest "$job")
  echo "$1: $job $digest"
  [ "$digest" = "$expected" ] || fail "$1: the digest is not the undisturbed run's, $expected"
}

text=/usr/share/common-licenses
cat "$text/GPL-3" "$text/Apache-2.0" > text.txt
mtctl -q data build text.txt --tokenizer byte --output text >/dev/null
steps=400
cat > job.yaml <<END
name: operated
model: {layers: 2, hidden: 64, heads: 4, ffn: 128}
data: {train: $work/text, tokenizer: byte, sequence_length: 64}
training: {steps: $steps, global_batch: 4}
parallel: {tensor: 2, data: 2}
checkpoint: {every_steps: 50, keep_last: 20}
fault: {min_step_deadline: 2s, start_deadline: 1m}
END
up() { mtctl -q dev up --state "$state" "$@" >/dev/null; }
up --nodes 2 --slots 2

submit
mtctl -q wait "$job" --timeout 2m
undisturbed=$job
expected=$(mtctl checkpoint show --digest "$job")
loss=$(status progress.loss)
echo "undisturbed: $job $expected"

submit
until_true 60 "$job reaches step 60" step_is_past 60
mtctl -q pause "$job"
until_true 60 "$job is paused" state_is paused
[ "$(slots_used)" = 0 ] || fail "a paused job holds slots"
until_true 20 "its ranks have ended" no_ranks
mtctl -q resume "$job"
same_digest "pause and resume"

submit
until_true 60 "$job reaches step 60" step_is_past 60
mtctl -q drain dev-2 --stop-jobs
until_true 60 "$job waits for dev-2" reason_has "not usable now: dev-2"
mtctl -q undrain dev-2
same_digest "drain and undrain"

submit
until_true 60 "$job reaches step 60" step_is_past 60
kill -STOP "$(mtctl describe "$job" -o json | field ranks.2.pid)"
same_digest "a rank that hangs"
cause=$(mtctl describe "$job" -o json | field failure.cause)
rank=$(mtctl describe "$job" -o json | field failure.rank)
[ "$cause $rank" = "hang 2" ] || fail "the hang of rank 2 was reported as: $cause $rank"

submit
mtctl logs -f "$job" --rank 0 > followed &
follower=$!
until_true 60 "$job reaches step 100" step_is_past 100
kill -9 "$(field pid < "$state/endpoint.json")"
up
wait "$follower"
same_digest "kill -9 of the coordinator"
seen=$(grep -c "^step" followed)
different=$(sed -n 's/^step *\([0-9]*\).*/\1/p' followed | sort -u | wc -l)
[ "$seen $different" = "$steps $steps" ] || fail "the follower saw $seen step lines of $different steps instead of $steps"

submit --set training.steps=100000
until_true 60 "$job reaches step 60" step_is_past 60
mtctl -q cancel "$job"
code=0; mtctl -q wait "$job" --timeout 1m || code=$?
[ "$code" = 8 ] || fail "waiting for a cancelled job ended with $code instead of 8"
until_true 20 "its ranks have ended" no_ranks
[ -z "$(ls /dev/shm)" ] || fail "shared memory was left: $(ls /dev/shm)"
echo "cancel: nothing left"

code=0; up --nodes 4 --slots 1 2>/dev/null || code=$?
[ "$code" = 5 ] || fail "another size of a cluster that is up ended with $code instead of 5"
mtctl -q dev down --state "$state"
up --nodes 4 --slots 1
names=$(mtctl nodes -o json | python3 -c 'import json,sys; print(*[n["name"] for n in json.load(sys.stdin)])')
[ "$names" = "dev-1 dev-2 dev-3 dev-4" ] || fail "the nodes are: $names"

# Another layout adds in another order: the loss agrees, not the bits.
submit --set checkpoint.resume_from="$undisturbed@350" --set parallel.tensor=1 --set parallel.data=4
mtctl -q wait "$job" --timeout 2m
resumed=$(status progress.loss)
python3 -c "import sys; sys.exit(abs($resumed - $loss) > 1e-3 * $loss)" || fail "loss $resumed instead of $loss"
echo "another layout on other nodes: $job, loss $resumed after $loss"
mtctl -q dev down --state "$state" --now
until_true 20 "the workers have ended" no_workers
echo OK
