#!/usr/bin/env bash
# What people get wrong, on a loopback cluster of two slots: each gets an error that names the thing, the value and the
# remedy, the right exit code, and leaves nothing behind: no rank, no process, no job in the queue, no file.
#   tests/scenario/in_sandbox.sh tests/scenario/bad_input.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
state=$work/state

echo "== mtctl without a coordinator"
began=$(date +%s%N)
refused 6 '127.0.0.1:9' -- mtctl --endpoint 127.0.0.1:9 --insecure list
took=$(((($(date +%s%N)) - began) / 1000000))
[ "$took" -le 3000 ] || fail "it took $took ms"

build_text
cat > job.yaml <<EOF
name: wrong
model: {layers: 2, hidden: 64, heads: 4, kv_heads: 2, ffn: 128}
data: {train: $work/text, tokenizer: byte, sequence_length: 64}
training: {steps: 4, global_batch: 4, micro_batch: 2}
checkpoint: {every_steps: 2}
EOF

mtctl -q dev up --nodes 1 --slots 2 --state "$state" > /dev/null
left_behind() {
  find "$state" \( -path '*/logs/*' -o -path '*/scratch/*' -o -name '*.tmp*' \) -print
  pgrep -fa 'mt-worker rank' || true
}
nothing_left() { [ -z "$(left_behind)" ] || { left_behind >&2; fail "left behind by: $1"; }; }
no_jobs() { [ "$(mtctl list -o json | tr -d ' \n')" = "[]" ] || fail "a job was queued by: $1"; nothing_left "$1"; }

echo "== two coordinators on one state folder"
pid=$(field pid < "$state/endpoint.json")
refused 5 "$state" "$pid" -- mt-coordinator --state "$state" --local-nodes 1
kill -0 "$pid"

echo "== typos in the spec"
sed 's/heads: 4/haeds: 4/' job.yaml > typo.yaml
refused 5 'typo.yaml:2:' 'haeds' 'heads' -- mtctl submit typo.yaml
sed 's/steps: 4/steps: soon/' job.yaml > typo.yaml
refused 5 'typo.yaml:4:' 'soon' -- mtctl submit typo.yaml
refused 5 'paralel' 'parallel' -- mtctl submit job.yaml --set paralel.data=2
refused 3 'absent.yaml' -- mtctl submit absent.yaml
refused 2 'did you mean .submit.' -- mtctl submitt job.yaml

echo "== sizes that do not divide"
refused 5 'tensor' '3' 'heads' -- mtctl plan job.yaml --set parallel.tensor=3
refused 5 'global_batch' '5' -- mtctl submit job.yaml --set training.global_batch=5

echo "== more ranks than slots"
refused 5 '4 (ranks|slots)' '2 slots' 'data: [12]|DP[12]|TP[12]' -- mtctl plan job.yaml --set parallel.data=2 --set parallel.tensor=2
refused 5 '4 (ranks|slots)' 'has 2' 'mtctl plan' -- mtctl submit job.yaml --set parallel.data=2 --set parallel.tensor=2

echo "== broken data that the client sees"
cp text.bin short.bin
head -c 40 text.idx > short.idx
refused 5 'data.train' "$work/short.idx" -- mtctl submit job.yaml --set data.train="$work/short"
refused 5 'data.train' "$work/short.idx" -- mtctl plan job.yaml --set data.train="$work/short"
rm short.bin
refused 3 'data.train' "$work/short" -- mtctl submit job.yaml --set data.train="$work/short"
no_jobs "the above"

echo "== missing or broken data that only the nodes see"
# A mount namespace of its own hides the file from mtctl and not from the daemons.
hidden() { unshare --mount sh -c 'mount -t tmpfs tmpfs "$1"; shift; exec "$@"' hidden "$work/data" "$@"; }
mkdir data
cp text.bin data/short.bin
head -c 40 text.idx > data/short.idx
for prefix in "$work/data/absent" "$work/data/short"; do
  job=$(hidden mtctl -q submit "$work/job.yaml" --set data.train="$prefix" -o json | field id)
  refused 8 "$prefix.idx" -- mtctl wait "$job" --timeout 1m
  [ "$(status failure.cause)" = data ] || fail "the cause is $(status failure.cause)"
  [ "$(status exit_code)" = 5 ] || fail "the job's exit code is $(status exit_code)"
  [ "$(mtctl events "$job" | grep -c attempt_started)" = 1 ] || fail "it was tried again"
  nothing_left "$prefix"
done

echo "== weights that a job cannot begin with"
golden=$here/../golden
cat > begin.yaml <<EOF
name: begin
initial_checkpoint: hf:$work/data/hub
data: {train: $work/text, sequence_length: 16}
training: {steps: 2, global_batch: 4}
EOF
hub() { rm -rf data/hub; cp -r "$golden/$1" data/hub; rm data/hub/expected.safetensors; }
jobs_known() { mtctl list -o json | grep -c '"id"'; }
known=$(jobs_known)
not_queued() { [ "$(jobs_known)" = "$known" ] || fail "a job was queued by: $1"; nothing_left "$1"; }
not_begun() { refused 5 "$@" -- mtctl submit begin.yaml; not_queued "$*"; }
hub llama
not_begun 'token' '61'  # ids of the text beyond the model's
refused 5 'model.vocab = 61' '257' -- mtctl submit begin.yaml --set data.tokenizer=byte
refused 5 'model.heads is 8, not 4' 'delete the model section' -- mtctl submit begin.yaml --set model.heads=8
sed -i 's/"model_type": "llama"/"model_type": "gemma2"/' data/hub/config.json
refused '[15]' 'model_type = "gemma2"' 'qwen3_moe' -- mtctl submit begin.yaml
hub llama
sed -i 's/"hidden_act": "silu"/"hidden_act": "gelu"/' data/hub/config.json
refused '[15]' 'hidden_act = "gelu"' silu -- mtctl submit begin.yaml
hub llama
cp "$golden/llama_tied/model.safetensors" data/hub/
not_begun 'tensor lm_head.weight is missing' 'tie_word_embeddings'
hub llama
cp "$golden/llama_scaled/model.safetensors" data/hub/
not_begun 'bias \[[0-9]+\] has no place'
hub llama
sed -i 's/"intermediate_size": 48/"intermediate_size": 64/' data/hub/config.json
not_begun '\[48,32\]' '\[64,32\]'
hub llama
truncate -s -1 data/hub/model.safetensors
refused '[15]' 'data/hub/model.safetensors' 'fetch this file again' -- mtctl submit begin.yaml
mv data/hub/model.safetensors data/hub/pytorch_model.bin
not_begun 'pickle' 'safe_serialization'
rm -r data/hub
refused 3 "$work/data/hub is not on this machine" -- mtctl submit begin.yaml
not_queued "weights"

echo "== weights that cannot be evaluated on this data"
refused 5 'sequence_length = 64: the table of learned positions has 32 rows' -- mtctl evaluate "hf:$golden/gpt2" --data text --sequence-length 64
mtctl -q checkpoint import hf "$golden/llama" imported > /dev/null
refused 5 'token id [0-9]+, but model.vocab is 61' -- mtctl evaluate imported --data text

echo "== and weights that only the nodes see"
hub llama
truncate -s -1 data/hub/model.safetensors
cp text.bin text.idx data/
job=$(hidden mtctl -q submit "$work/begin.yaml" --set data.train="$work/data/text" --set model.layers=2 --set model.hidden=32 --set model.heads=4 \
  --set model.kv_heads=2 --set model.ffn=48 --set model.vocab=61 -o json | field id)
refused 8 'data/hub' 'fetch this file again' -- mtctl wait "$job" --timeout 1m
[ "$(status failure.cause)" = data ] || fail "the cause is $(status failure.cause)"
nothing_left "weights of the nodes"

echo "== and what is right still runs"
job=$(submit job.yaml --set parallel.data=2)
mtctl wait "$job" --timeout 2m
mtctl dev down --state "$state" --now
pgrep -fa 'mt-(worker|coordinator)' && fail "processes are left" || true
echo "OK"
