#!/usr/bin/env bash
# Jobs on a device as the host sees one: its memory is its own, what is enqueued happens as late as can be, and passes are
# recorded (worker/comm/testing/fake_backend.cc). Through coordinator and daemon, with packed documents, a batch that ramps up,
# held-out losses and checkpoints of device memory: the same bits as in host memory, and after kill -9. Then evaluate, generate,
# export, and a start from the exported weights.
#   tests/scenario/in_sandbox.sh tests/scenario/device.sh [BIN_FOLDER] [TEST_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
MT_BACKEND_PATH=$(cd "${2:-$bin/../test}" && pwd)
export MT_BACKEND_PATH
. "$here/hosts.sh"
. "$here/jobs.sh"
trap report EXIT

declare -A model=(
  [llama]='layers: 2, hidden: 64, heads: 4, kv_heads: 2, ffn: 128'
  [deepseek_v3]='layers: 2, hidden: 64, heads: 4, ffn: 128, mla: {kv_rank: 32, nope_dim: 16, rope_dim: 8, v_dim: 16},
    moe: {experts: 4, top_k: 2, ffn: 64, first_dense: 1, shared_ffn: 64, selection_bias: true}, mtp: {layers: 1}'
)
write_job() {  # ARCHITECTURE BACKEND
  cat > job.yaml <<END_OF_JOB
name: ${1//_/-}
model: {architecture: $1, ${model[$1]}}
data: {train: $work/text, validation: $work/text, tokenizer: byte, sequence_length: 64, document_mask: true, reset_positions: true}
training: {steps: 24, global_batch: 8, micro_batch: 2, precision: bf16, batch_rampup: {start: 4, increment: 4, samples: 40}, evaluation: {every_steps: 10, batches: 2}}
checkpoint: {every_steps: 4, replicas: 0}
runtime: {backend: $2}
END_OF_JOB
}
run() {  # waits for $job, and sets digest, loss and held_out
  mtctl -q wait "$job" --timeout 4m
  digest=$(mtctl checkpoint show --digest "$job")
  loss=$(status progress.loss)
  held_out=$(status progress.validation_loss)
}

build_text
mtctl -q dev up --state "$state" --nodes 1 --slots 1 > /dev/null
for architecture in llama deepseek_v3; do
  write_job $architecture reference
  job=$(submit job.yaml)
  run
  expected="$digest $loss $held_out"

  write_job $architecture fakedevice
  job=$(submit job.yaml)
  run
  grep -q 'device 0, ' <<< "$(mtctl logs "$job")" || fail "$architecture: not on a device"
  [ "$digest $loss $held_out" = "$expected" ] || fail "$architecture: $digest $loss $held_out on a device, $expected in host memory"

  job=$(submit job.yaml)
  until_true 60 "$job has a checkpoint" checkpoint_is_past 4
  kill -9 "$(status ranks.0.pid)" || fail "$architecture: its rank had ended before the kill"
  run
  [ "$digest $loss $held_out" = "$expected" ] || fail "$architecture: $digest $loss $held_out after a kill, $expected undisturbed"
  [ "$(status restarts)" -ge 1 ] || fail "$architecture: nothing was restarted, so nothing is proven"
  echo "$architecture: loss $loss, held out $held_out, $digest in host memory, on a device, and killed"
done

for command in "evaluate $job --batches 2" "generate $job --prompt The --max-tokens 20 --temperature 0"; do
  # shellcheck disable=SC2086
  mtctl -q $command --backend reference > host
  # shellcheck disable=SC2086
  mtctl -q $command --backend fakedevice > device
  cmp host device || { cat host device >&2; fail "mtctl $command says something else on a device"; }
done
mtctl -q checkpoint export hf "$job" "$work/exported" > /dev/null
for backend in reference fakedevice; do
  job=$(submit job.yaml --set "initial_checkpoint=hf:$work/exported" --set training.steps=3 --set "runtime.backend=$backend")
  run
  [ $backend = reference ] && expected="$digest $loss" || [ "$digest $loss" = "$expected" ] ||
    fail "from exported weights: $digest $loss on a device, $expected in host memory"
done
mtctl -q cluster down --state "$state" --now
echo OK
