#!/usr/bin/env bash
# Data for nodes that share no files: three hosts that do not see the coordinator's data folder. A job that distributes its data
# runs; a worker daemon killed in the middle of a fetch goes on behind what had come; a cached file that was changed is fetched
# again; a cache that is too small and copies that differ end the job with a message that says where and what to do.
#   tests/scenario/in_sandbox.sh tests/scenario/distribute.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
report_all() {
  local code=$?
  [ "$code" = 0 ] || tail -n 8 /root/.mt/*/*/worker.log >&2 || true
  (exit "$code") || report
}
trap report_all EXIT

# The coordinator's data; on the hosts that folder holds what is in own/HOST.
mkdir -p data own/h1 own/h2 own/h3
cat /usr/share/common-licenses/GPL-3 /usr/share/common-licenses/Apache-2.0 > text.txt
mtctl -q data build text.txt --tokenizer byte --output data/text > /dev/null
for i in $(seq 1500); do cat text.txt; done > large.txt
mtctl -q data build large.txt --tokenizer byte --output data/large > /dev/null
rm large.txt
# The same name and size on h1 and h2, but not the same text.
cp data/text.* own/h1
cp data/text.* own/h2
mv own/h1/text.bin own/h1/own.bin && mv own/h1/text.idx own/h1/own.idx
mv own/h2/text.bin own/h2/own.bin && mv own/h2/text.idx own/h2/own.idx
printf 'x' | dd of=own/h2/own.bin bs=1 seek=1000 conv=notrunc 2> /dev/null
cat > prepare.sh <<EOF
mount -t tmpfs tmpfs "$work/data"
cp "$work/own/\$1"/* "$work/data" 2> /dev/null || true
EOF
export HOST_PREPARE=$work/prepare.sh
make_hosts 3
cat > hosts <<EOF
root@10.77.0.[1-2] slots=1 ifname=eth0
root@10.77.0.3 slots=1 ifname=eth0 data_cache=1M
EOF
cat > job.yaml <<EOF
name: far
model: {layers: 2, hidden: 64, heads: 4, kv_heads: 2, ffn: 128}
data: {train: $work/data/text, tokenizer: byte, sequence_length: 64, distribute: true}
training: {steps: 20, global_batch: 4, micro_batch: 2}
parallel: {data: 2}
EOF
mtctl cluster up --hostfile hosts --state "$state" --ssh-key "$ssh_folder/user_key" --known-hosts "$ssh_folder/known_hosts"
node_folder() { ls -d /root/.mt/*/"$1"; }
cached() { find /root/.mt -path '*/datasets/*' -name "data.$1" | wc -l; }
succeeded() { mtctl -q wait "$job" --timeout 4m || fail "job $job did not succeed"; }
nodes_of_job() { mtctl status "$job" -o json | python3 -c 'import json,sys; print(*sorted({r["node"] for r in json.load(sys.stdin)["ranks"]}))'; }

echo "== nodes without the data"
job=$(submit job.yaml)
succeeded
[ "$(cached bin)" = 2 ] || fail "$(cached bin) nodes have the data in their cache, not 2"
mtctl events "$job" | grep data_ready
nodes=$(nodes_of_job)
echo "    ran on $nodes"

echo "== again, from the cache"
job=$(submit job.yaml)
succeeded
mtctl events "$job" | grep 'data_ready.* 0 bytes were fetched' || fail "the cache was not used"

echo "== a worker daemon is killed in the middle of a fetch"
part() { ls /root/.mt/*/*/state/datasets/*/data.bin.part 2> /dev/null | head -n 1; }
has_part() { [ -n "$(part)" ] && [ "$(stat -c %s "$(part)")" -gt 1000000 ]; }
job=$(submit job.yaml --set data.train="$work/data/large")
deadline=$(($(date +%s) + 120))
until has_part; do [ "$(date +%s)" -lt "$deadline" ] || fail "no fetch was seen"; done
victim=$(part)
pid_file=${victim%%/state/*}/daemon.pid
read -r pid _ < "$pid_file"
kill -9 "$pid"
mtctl describe "$job" | grep -E '^(reason|data on)' || true
succeeded
[ "$(status restarts)" = "" ] || [ "$(status restarts)" = 0 ] || fail "the job was restarted: no rank had run"
fetched=$(mtctl events "$job" | sed -n 's/.*data; \([0-9]*\) bytes were fetched.*/\1/p')
whole=$(($(stat -c %s data/large.bin) + $(stat -c %s data/large.idx)))
[ "$fetched" -lt $((2 * whole)) ] || fail "$fetched bytes were fetched for two nodes of $whole: nothing was gone on with"
echo "    fetched $fetched bytes for two nodes of $whole"
[ "$(cached bin.part)" = 0 ] || fail "a part is left"

echo "== a cached file that was changed"
damaged=$(find /root/.mt -path '*/datasets/*' -name data.bin -size -1000k | head -n 1)
[ -n "$damaged" ] || fail "no cached file of the first job is left"
printf '\377\377\377\377' | dd of="$damaged" bs=1 seek=500 conv=notrunc 2> /dev/null
job=$(submit job.yaml)
succeeded
grep -h "is not what it was when it was fetched" /root/.mt/*/*/worker.log
cmp "$damaged" data/text.bin || fail "the damaged file is still there"

echo "== a cache that is too small"
job=$(submit job.yaml --set parallel.data=3 --set training.global_batch=6 --set data.train="$work/data/large")
code=0
mtctl -q wait "$job" --timeout 2m || code=$?
[ "$code" != 0 ] || fail "it ran"
mtctl describe "$job" | grep -E "10.77.0.3.*cache of datasets of this node may have 1 MB.*raise data_cache=" || fail "the message is another one"

echo "== data that is missing at the coordinator"
job=$(submit job.yaml --set data.train="$work/data/nowhere")
mtctl -q wait "$job" --timeout 1m && fail "it ran"
mtctl describe "$job" | grep -E "nowhere.idx.*the coordinator reads the files where it runs"

echo "== copies that differ"
job=$(submit job.yaml --set data.train="$work/data/own" --set data.distribute=false)
mtctl -q wait "$job" --timeout 2m && fail "it ran"
mtctl describe "$job" | grep -E "data/own on node 10.77.0.2 is not that of 10.77.0.1: .*own.bin has [0-9]+ bytes on both, but not the same" ||
  fail "the message names neither node nor file"
mtctl cluster down --state "$state" --now
echo "OK"
