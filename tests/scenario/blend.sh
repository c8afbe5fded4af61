#!/usr/bin/env bash
# The position in the data is consumed_samples alone: a job on a blend of three datasets, its batch ramping up, logs every sample that
# it trains on; a second job goes on from the middle of the first under another data-parallel size, and trains on the same samples,
# each once. The orders are built once on the node, by whichever rank was first.
#   tests/scenario/in_sandbox.sh tests/scenario/blend.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
trap report EXIT

sources=()
for name in GPL-3:0.2 Apache-2.0:0.5 Artistic:0.3; do
  license=${name%:*}
  cp "/usr/share/common-licenses/$license" "$work/$license.txt"
  mtctl -q data build "$work/$license.txt" --document-separator '' --tokenizer byte --output "$work/$license" > /dev/null
  sources+=("{prefix: $work/$license, weight: ${name#*:}}")
done
train="[$(printf '%s, ' "${sources[@]}" | sed 's/, $//')]"

mtctl -q dev up --state "$state" --nodes 1 --slots 4 > /dev/null

# trained DATA_RANKS FIRST LAST OPTION...: a job's samples, sorted, into $job.samples; they are FIRST to LAST, each once.
trained() {
  local ranks=$1 first=$2 last=$3
  shift 3
  job=$(submit "$here/../../examples/quickstart.yaml" --set "data.train=$train" --set "parallel={tensor: 1, sequence: false, data: $ranks}" --set name=blend \
    --set training.steps=24 --set training.global_batch=8 --set training.micro_batch=1 \
    --set 'training.batch_rampup={start: 4, increment: 4, samples: 48}' --set data.sequence_length=64 \
    --set checkpoint.every_steps=8 --set runtime.log_samples=true "$@")
  mtctl -q wait "$job" --timeout 4m
  mtctl logs "$job" --no-prefix | grep -E '^sample [0-9]+: ' | sort -k2n > "$job.samples"
  seq "$first" "$last" > expected
  sed -E 's/^sample ([0-9]+): .*/\1/' "$job.samples" | cmp -s - expected ||
    fail "$job trained on other samples than $first to $last, or on some twice: $(wc -l < "$job.samples") lines in $work/$job.samples"
}

# 12 steps of 4 samples, then 12 of 8: the checkpoint of step 16 is behind 48 + 4 * 8 samples.
trained 2 0 143
whole=$job
[ "$(cut -d' ' -f4 "$whole.samples" | sort -u | wc -l)" = 3 ] || fail "not all datasets are in $work/$whole.samples"
for ranks in 4 1; do
  trained "$ranks" 80 143 --set "checkpoint.resume_from=$whole@16"
  sed -n '81,$p' "$whole.samples" | cmp - "$job.samples" || fail "$job, $ranks data ranks, reads other tokens than $whole"
  echo "samples 80 to 143 under $ranks data ranks are those of $whole under 2"
done
# Three datasets and their blend.
[ "$(find "$work" "$state" -path '*sample-index/*.index' | sort -u | wc -l)" = 4 ] ||
  fail "the node's sample-index: $(find "$work" "$state" -path '*sample-index/*' | sort -u | tr '\n' ' ')"
mtctl -q cluster down --state "$state" --now
echo OK
