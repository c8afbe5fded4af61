#!/usr/bin/env bash
# Debian's Prometheus, with deploy/prometheus as it is but for the target's address, scrapes a running job; PromQL over its
# HTTP API returns loss, tokens/s, step time, restarts and the age of the checkpoint; promtool accepts the rules.
#   tests/scenario/in_sandbox.sh tests/scenario/prometheus.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
command -v prometheus > /dev/null && command -v promtool > /dev/null || { echo "skipped: no prometheus" >&2; exit 77; }
. "$here/hosts.sh"
. "$here/jobs.sh"
state=$work/state
cp -r "$here/../../deploy/prometheus" "$work/prometheus"
promtool check rules "$work/prometheus/alerts.yml"
promtool test rules "$work/prometheus/alerts_test.yml"

build_text
cat > job.yaml <<EOF
name: watched
model: {layers: 2, hidden: 128, heads: 4, kv_heads: 2, ffn: 256}
data: {train: $work/text, tokenizer: byte, sequence_length: 64}
training: {steps: 100000, global_batch: 4, micro_batch: 2}
parallel: {data: 2}
checkpoint: {every_steps: 50}
EOF
mtctl -q dev up --nodes 2 --slots 1 --state "$state" > /dev/null
address=$(mtctl cluster status -o json | field metrics_address)
address=${address#http://}
echo "- targets: [\"${address%/metrics}\"]" > "$work/prometheus/targets.yml"
promtool check config "$work/prometheus/prometheus.yml"
prometheus --config.file="$work/prometheus/prometheus.yml" --storage.tsdb.path="$work/tsdb" --web.listen-address=127.0.0.1:9090 \
  --log.level=warn > "$work/prometheus.log" 2>&1 &
prometheus=$!

query() { curl -sf http://127.0.0.1:9090/api/v1/query --data-urlencode "query=$1" | field data.result.0.value.1 2> /dev/null; }
returns() { local value; value=$(query "$1") && [ -n "$value" ] && awk -v x="$value" "BEGIN { exit !($2) }"; }
ask() {  # WHAT QUERY CONDITION
  until_true 60 "$1: $2" returns "$2" "$3" || { cat "$work/prometheus.log" >&2; curl -s http://127.0.0.1:9090/api/v1/targets >&2; exit 1; }
  printf '%-16s %-70s %s\n' "$1" "$2" "$(query "$2")"
}

job=$(submit job.yaml)
until_true 60 "a checkpoint" checkpoint_is_past 50
kill -9 "$(status ranks.1.pid)"
ask target 'up{job="mt"}' 'x == 1'
ask restarts "sum(mt_job_restarts_total{job=\"$job\"})" 'x == 1'
ask loss "mt_train_loss{job=\"$job\"}" 'x > 0 && x < 7'
ask tokens/s "mt_train_tokens_per_second{job=\"$job\"}" 'x > 0'
ask "step time, p50" "histogram_quantile(0.5, sum by (le) (rate(mt_train_step_duration_seconds_bucket{job=\"$job\"}[1m])))" 'x > 0 && x < 60'
ask "checkpoint age" "time() - mt_checkpoint_last_success_timestamp_seconds{job=\"$job\"}" 'x > -5 && x < 60'
rules_are_well() {
  local rules
  rules=$(curl -sf http://127.0.0.1:9090/api/v1/rules) || return 1
  grep -q '"health":"ok"' <<< "$rules" && ! grep -Eq '"health":"(err|unknown)"' <<< "$rules"
}
until_true 60 "every alert rule is evaluated without an error" rules_are_well
kill "$prometheus"
wait "$prometheus" || true
mtctl -q dev down --state "$state" --now
echo "OK"
