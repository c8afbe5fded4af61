#!/usr/bin/env bash
# Three hosts with their own sshd; a TP2xDP3 job; kill -9 of a rank, of a worker daemon, of everything on a host, and of the
# coordinator, each in the middle of a run. Every job must succeed and its last checkpoint must have the digest of the run
# that nobody disturbed.
#   tests/scenario/in_sandbox.sh tests/scenario/kill_anything.sh shared|none [BIN_FOLDER]
# Environment: STEPS (default 60), KILLS (default "rank daemon host coordinator").
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
store=$1
bin=$(cd "${2:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
steps=${STEPS:-60}
kills=${KILLS:-rank daemon host coordinator}
make_hosts 3
cat > hosts <<EOF
# three machines, two slots each
root@10.77.0.[1-3] slots=2 ifname=eth0
EOF
state=$work/state

report() {  # on the way out of a failure
  local code=$?
  [ "$code" = 0 ] && return
  echo "--- FAILED (exit $code); coordinator's log:" >&2
  tail -n 25 "$state/coordinator.log" >&2 || true
  tail -n 8 /root/.mt/*/*/worker.log >&2 || true
  [ -z "${job:-}" ] || { mtctl events "$job" >&2; mtctl describe "$job" >&2; } || true
}
trap report EXIT

up() { mtctl cluster up --hostfile hosts --state "$state" --ssh-key "$ssh_folder/user_key" --known-hosts "$ssh_folder/known_hosts"; }

build_text
cat > job.yaml <<EOF
name: victim
model: {layers: 4, hidden: 128, heads: 4, kv_heads: 2, ffn: 256}
data: {train: $work/text, tokenizer: byte, sequence_length: 128}
training: {steps: $steps, global_batch: 12, micro_batch: 2}
parallel: {tensor: 2, data: 3}
checkpoint: {every_steps: 5$([ "$store" = shared ] && echo ", path: $work/checkpoints")}
fault: {min_step_deadline: 20s, start_deadline: 2m}
EOF
mkdir -p "$work/checkpoints"

up
mtctl nodes

run() {  # name of what is killed
  local victim=$1
  job=$(submit job.yaml)
  if [ "$victim" != nothing ]; then
    # Past a checkpoint, before the end.
    until_true 120 "job $job reaches step $((steps / 3))" step_is_past $((steps / 3))
    kill_"$victim"
  fi
  mtctl wait "$job" --timeout 5m
  digest=$(mtctl checkpoint show --digest "$job")
}

kill_rank() { kill -9 "$(status ranks.3.pid)"; }
kill_daemon() { local pid; read -r pid _ < "$(ls -d /root/.mt/*/10.77.0.2)/daemon.pid"; kill -9 "$pid"; }
kill_host_() { kill_host h3; start_sshd h3; }
kill_coordinator() {
  kill -9 "$(field pid < "$state/endpoint.json")"
  up
}

run nothing
expected=$digest
[ -n "$expected" ]
echo "undisturbed: $job $expected"
for victim in $kills; do
  if [ "$victim" = host ]; then run host_; else run "$victim"; fi
  restarts=$(status restarts)
  echo "kill -9 of $victim: $job $digest (restarts: ${restarts:-0})"
  if [ "$digest" != "$expected" ]; then
    echo "FAILED: the digest differs from the undisturbed run's" >&2
    exit 1
  fi
done
mtctl cluster down --state "$state" --now
echo "OK: $store store, kills: $kills"
