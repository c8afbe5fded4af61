#!/usr/bin/env bash
# Storage that fails under a running job: the disk of a node is full while it checkpoints (the old checkpoint stays, the job goes on,
# and checkpoints again when there is room), and a shard that rots (the checkpoint before it is used). The last checkpoint of
# each job has the digest of the run that nobody disturbed.
#   tests/scenario/in_sandbox.sh tests/scenario/bad_storage.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
state=$work/state
report() {
  local code=$?
  [ "$code" = 0 ] && return
  tail -n 15 "$state/coordinator.log" >&2 || true
  [ -z "${job:-}" ] || { mtctl events "$job" >&2; mtctl describe "$job" | sed "/^OPERATION/,\$d" >&2; } || true
}
trap report EXIT
build_text
cat > job.yaml <<EOF
name: storage
model: {layers: 2, hidden: 128, heads: 4, kv_heads: 2, ffn: 256}
data: {train: $work/text, tokenizer: byte, sequence_length: 64}
training: {steps: 100000, global_batch: 4, micro_batch: 2}
parallel: {data: 2}
checkpoint: {every_steps: 20}
EOF
# A disk of its own for what the workers write.
mkdir -p "$work/disk"
mount -t tmpfs -o size=64m tmpfs "$work/disk"
mtctl -q dev up --nodes 1 --slots 2 --state "$state" > /dev/null
metrics=$(mtctl cluster status -o json | field metrics_address)
disk_full_failures() {
  local count
  count=$(curl -sf "${metrics%/metrics}/metrics" | sed -n "s/^mt_checkpoint_failures_total{.*job=\"$job\".*reason=\"disk_full\".*} //p")
  [ "${count%%.*}" -ge "$1" ] 2>/dev/null
}
ended() { case "$(status state)" in succeeded | failed | cancelled) ;; *) return 1 ;; esac; }
paused() { [ "$(status state)" = paused ]; }

echo "== a full disk while checkpointing"
job=$(submit job.yaml --set checkpoint.path="$work/disk")
until_true 60 "a checkpoint" checkpoint_is_past 20
dd if=/dev/zero of="$work/disk/filler" bs=64k 2> /dev/null || true
until_true 60 "mt_checkpoint_failures_total has reason disk_full" disk_full_failures 2
kept=$(status last_checkpoint_step)
mtctl checkpoint verify "$job@$kept"
[ "$(status restarts)" = "" ] || [ "$(status restarts)" = 0 ] || fail "the job was restarted"
mtctl events "$job" | grep checkpoint_failed | head -n 1
[ -z "$(find "$work/disk" -name '*.tmp*')" ] || fail "temporary files are left on the full disk"
before=$(status progress.step)
until_true 60 "the job goes on" step_is_past $((before + 20))
rm "$work/disk/filler"
until_true 60 "a checkpoint after there is room again" checkpoint_is_past $((kept + 1))
mtctl cancel "$job"
until_true 60 "the job has ended" ended

echo "== a corrupted shard"
mkdir -p "$work/shared"
job=$(submit job.yaml --set checkpoint.path="$work/shared" --set training.steps=100)
mtctl -q wait "$job" --timeout 3m
expected=$(mtctl checkpoint show --digest "$job")
job=$(submit job.yaml --set checkpoint.path="$work/shared" --set training.steps=100)
until_true 60 "two checkpoints" checkpoint_is_past 40
mtctl pause "$job"
until_true 60 "paused" paused
newest=$(status last_checkpoint_step)
shard=$(find "$work/shared" -path "*$job*" -name '*.safetensors' | grep -E "/[a-z-]*0*$newest/" | head -n 1)
[ -n "$shard" ] || { find "$work/shared" -path "*$job*"; fail "no shard of step $newest"; }
printf '\377\377\377\377\377\377\377\377' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") - 64)) conv=notrunc 2> /dev/null
mtctl resume "$job"
mtctl wait "$job" --timeout 3m
mtctl events "$job" | grep checkpoint_bad | grep -F "step $newest" || fail "no event says that step $newest was bad"
digest=$(mtctl checkpoint show --digest "$job")
[ "$digest" = "$expected" ] || fail "the digest differs from the undisturbed run's"
mtctl -q dev down --state "$state" --now
echo "OK"
