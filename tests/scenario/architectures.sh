#!/usr/bin/env bash
# Every architecture trains end to end on a loopback cluster: a tiny model of each, its loss must fall, a rank is killed with
# kill -9 behind a checkpoint, and the run that goes on must end with the digest of the run that nobody disturbed.
#   tests/scenario/in_sandbox.sh tests/scenario/architectures.sh [BIN_FOLDER] [ARCHITECTURE...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
shift || true
. "$here/hosts.sh"
. "$here/jobs.sh"
trap report EXIT

size='layers: 2, hidden: 64, heads: 4, ffn: 128'
experts='experts: 4, top_k: 2, ffn: 64'
mla='kv_rank: 32, nope_dim: 16, rope_dim: 8, v_dim: 16'
# model and parallel of each
declare -A model parallel
model[llama]="$size, kv_heads: 2, rope: {scaling: llama3, factor: 8, original_max_positions: 32}"
model[qwen2]="$size, kv_heads: 2, tie_embeddings: true"
model[qwen3]="$size, kv_heads: 2, head_dim: 24"
model[mistral]="$size, kv_heads: 2, window: {size: 24}"
model[gpt2]="$size, max_positions: 64"
model[mixtral]="$size, kv_heads: 2, moe: {$experts, balance: batch, balance_coefficient: 0.01}"
model[qwen3_moe]="$size, kv_heads: 2, head_dim: 24, moe: {$experts}"
model[deepseek_v2]="$size, mla: {$mla}, moe: {$experts, first_dense: 1, shared_ffn: 64, groups: 2, top_groups: 1}"
model[deepseek_v3]="$size, mla: {$mla, q_rank: 32}, moe: {$experts, first_dense: 1, shared_ffn: 64}, mtp: {layers: 1}"
model[gpt_oss]="$size, kv_heads: 2, window: {size: 24, period: 2}, moe: {$experts}"
for name in "${!model[@]}"; do parallel[$name]='data: 2'; done
parallel[deepseek_v2]='tensor: 2, sequence: true'
parallel[deepseek_v3]='pipeline: 2'
parallel[gpt_oss]='tensor: 2'
parallel[gpt2]='pipeline: 2'
if [ $# -gt 0 ]; then names=("$@"); else mapfile -t names < <(printf '%s\n' "${!model[@]}" | sort); fi

write_job() {
  cat > job.yaml <<END_OF_JOB
name: ${1//_/-}
model: {architecture: $1, ${model[$1]}}
data: {train: $work/text, tokenizer: byte, sequence_length: 64}
training: {steps: 80, global_batch: 8, optimizer: {lr: 3e-3}, schedule: {warmup_steps: 2}}
parallel: {${parallel[$1]}}
checkpoint: {every_steps: 10, replicas: 0}
END_OF_JOB
}
fell() { python3 -c 'import sys; first, last = map(float, sys.argv[1:]); sys.exit(not last < first - 0.5)' "$@"; }

build_text
mtctl -q dev up --state "$state" --nodes 1 --slots 2 > /dev/null
for name in "${names[@]}"; do
  [ -n "${model[$name]:-}" ] || fail "no architecture $name; there are: ${!model[*]}"
  write_job "$name"
  job=$(submit job.yaml)
  mtctl -q wait "$job" --timeout 2m
  expected=$(mtctl checkpoint show --digest "$job")
  first=$(status progress.loss_history.0)
  last=$(status progress.loss)
  fell "$first" "$last" || fail "$name: the loss went from $first to $last"

  job=$(submit job.yaml)
  until_true 60 "$job has a checkpoint" checkpoint_is_past 10
  kill -9 "$(status ranks.1.pid)" || fail "$name: its rank had ended before the kill; give the job more steps"
  mtctl -q wait "$job" --timeout 2m
  digest=$(mtctl checkpoint show --digest "$job")
  restarts=$(status restarts)
  [ "$digest" = "$expected" ] || fail "$name: $digest after a kill, $expected undisturbed"
  [ "${restarts:-0}" -ge 1 ] || fail "$name: nothing was restarted, so nothing is proven"
  echo "$name (${parallel[$name]}): loss $first -> $last, killed behind a checkpoint and the same bits: $digest"
done
mtctl -q cluster down --state "$state" --now
echo "OK: ${names[*]}"
