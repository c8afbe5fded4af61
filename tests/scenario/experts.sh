#!/usr/bin/env bash
# examples/moe.yaml as it is, on a loopback cluster: the loss falls, experts stay evenly used, /metrics and the step line show it;
# a rank is killed with kill -9 behind a checkpoint, and the run that goes on ends with the digest of the run that nobody
# disturbed. Then with the state that balancing has of its own: a selection bias, and the loads of the step before, while the batch
# ramps up and documents are apart.
#   tests/scenario/in_sandbox.sh tests/scenario/experts.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
trap report EXIT

build_text
mtctl -q dev up --state "$state" --nodes 2 --slots 2 > /dev/null
address=$(mtctl cluster status -o json | field metrics_address)
address=${address#http://}
shows() { curl -sf "http://${address%/metrics}/metrics" > metrics && grep -Eq "$1" metrics || fail "no $1 on $address"; }

# undisturbed_and_killed NAME OPTION...: the example with these options, twice.
undisturbed_and_killed() {
  local name=$1 expected first last digest
  shift
  job=$(submit "$here/../../examples/moe.yaml" --set "data.train=$work/text" --set "name=$name" "$@")
  mtctl -q wait "$job" --timeout 4m
  expected=$(mtctl checkpoint show --digest "$job")
  first=$(status progress.loss_history.0)
  last=$(status progress.loss)
  awk -v a="$first" -v b="$last" 'BEGIN { exit !(b < a - 1) }' || fail "$name: the loss went from $first to $last"
  mtctl logs "$job" | grep -E 'step 60/60 .* expert load [0-9.]+ at most' || fail "$name: no load in the step line"

  job=$(submit "$here/../../examples/moe.yaml" --set "data.train=$work/text" --set "name=$name" "$@")
  until_true 90 "$job has a checkpoint" checkpoint_is_past 10
  kill -9 "$(status ranks.1.pid)" || fail "$name: its rank had ended before the kill"
  mtctl -q wait "$job" --timeout 4m
  digest=$(mtctl checkpoint show --digest "$job")
  [ "$digest" = "$expected" ] || fail "$name: $digest after a kill, $expected undisturbed"
  [ "$(status restarts)" -ge 1 ] || fail "$name: nothing was restarted, so nothing is proven"
  echo "$name: loss $first -> $last, killed behind a checkpoint and the same bits: $digest"
}

undisturbed_and_killed batch
shows "^mt_train_auxiliary_loss\{job=\"$job\",loss=\"balance\"\} 0\.[0-9]"
shows "^mt_train_auxiliary_loss\{job=\"$job\",loss=\"router_z\"\} 0\.[0-9]"
shows "^mt_moe_load_ratio\{job=\"$job\",layer=\"3\"\} [1-3]"
undisturbed_and_killed bias --set model.moe.selection_bias=true --set model.moe.balance=global --set model.moe.capacity_factor=1.25 \
  --set 'training.batch_rampup={start: 4, increment: 4, samples: 160}' \
  --set data.mask_eod=true --set data.document_mask=true --set data.reset_positions=true
[ "$(status progress.consumed_samples)" = $((40 * 4 + 20 * 8)) ] || fail "$(status progress.consumed_samples) samples with a ramp-up"
shows "^mt_moe_dropped_tokens_total\{job=\"$job\"\} [0-9]+"
mtctl -q cluster down --state "$state" --now
echo OK
