#!/usr/bin/env bash
# A build of a dataset that is killed at random points, and one whose disk is full: each goes on where it was, with another number
# of threads each time, and ends with the bytes of the build that nobody disturbed.
#   tests/scenario/in_sandbox.sh tests/scenario/data_build.sh [BIN_FOLDER] [SEED]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
seed=${2:-1}
RANDOM=$seed
work=$MT_SCENARIO_FOLDER
export MT_CONFIG_DIR=$work/none
fail() { echo "FAILED (seed $seed): $*" >&2; exit 1; }

mkdir -p "$work/corpus"
awk 'BEGIN {
  srand(3)
  for (i = 0; i < 120000; ++i) {
    words = ""
    for (n = int(rand() * 60); n >= 0; --n) words = words " w" int(rand() * 5000)
    if (i % 997 == 0) print "not json"; else print "{\"id\": " i ", \"text\": \"document" (i % 110000) words "\"}"
  }
}' > "$work/corpus/a.jsonl"
head -c 9000000 "$work/corpus/a.jsonl" | gzip -1 > "$work/corpus/b.jsonl.gz"
tail -c 9000000 "$work/corpus/a.jsonl" | zstd -q -1 > "$work/corpus/c.jsonl.zst"
cp "$work/corpus/a.jsonl" "$work/corpus/d.txt"

# Not in a function that is put into the background: $! would be a shell, and mtctl would outlive its kill.
build=("$bin/mtctl" data build "$work/corpus" --document-separator 'not json' --deduplicate --journal-interval 0)
same() {
  for suffix in bin idx manifest.json bad.jsonl; do
    cmp "$work/whole.$suffix" "$1.$suffix" || fail "$2: $1.$suffix differs"
  done
  [ "$(cd "$(dirname "$1")" && ls -A | grep -c "^$(basename "$1")\.")" = 4 ] || fail "$2: something is left: $(ls -A "$(dirname "$1")")"
}
"${build[@]}" --output "$work/whole" >/dev/null 2>&1

# The moment is that at which PREFIX.bin.partial has reached a random size: no clock is needed to kill in the middle.
mkdir "$work/killed"
total=$(stat -c %s "$work/whole.bin")
kills=0 resumed=0
while :; do
  at=$((total * (kills + 1) / 16 + (RANDOM % 64) * total / 2048))
  "${build[@]}" --threads $((1 + RANDOM % 4)) --output "$work/killed/set" >/dev/null 2>"$work/log" &
  pid=$!
  while kill -0 $pid 2>/dev/null && [ "$(stat -c %s "$work/killed/set.bin.partial" 2>/dev/null || echo 0)" -lt "$at" ]; do :; done
  kill -9 $pid 2>/dev/null && kills=$((kills + 1))
  code=0
  wait $pid 2>/dev/null || code=$?
  ! grep -q 'going on with an interrupted build' "$work/log" || resumed=$((resumed + 1))
  [ $code != 0 ] || break
  [ $code = 137 ] || { cat "$work/log" >&2; fail "exit $code"; }
  [ ! -e "$work/killed/set.idx" ] || { ls -la "$work/killed" >&2; fail "killed, and an index is there"; }
  [ $kills -lt 40 ] || fail "never came through"
done
[ $kills -ge 5 ] && [ $resumed -ge 5 ] || fail "only $kills kills, $resumed resumed"
same "$work/killed/set" "killed $kills times"
echo "killed $kills times, gone on $resumed times, seed $seed: the same bytes"

mkdir "$work/small"
mount -t tmpfs -o size=12m tmpfs "$work/small"
code=0
"${build[@]}" --output "$work/small/set" >/dev/null 2>"$work/log" || code=$?
[ $code != 0 ] || fail "a full disk went unnoticed"
grep -q 'make room and run it again' "$work/log" || { cat "$work/log" >&2; fail "a full disk is not told"; }
[ ! -e "$work/small/set.idx" ] || fail "an index on a full disk"
mount -o remount,size=300m "$work/small"
"${build[@]}" --output "$work/small/set" >/dev/null 2>"$work/log" || { cat "$work/log" >&2; fail "after room was made"; }
grep -q 'going on with an interrupted build' "$work/log" || fail "begun again after room was made"
same "$work/small/set" "disk full"
echo "disk full, room made, gone on: the same bytes"

# Two datasets of one command, killed in the second: the same command leaves the first as it is and goes on in the second.
keys=("$bin/mtctl" data build "$work/corpus/a.jsonl" --text-key id,text --journal-interval 0 --memory 64MB)
sed -i 's/{"id": \([0-9]*\),/{"id": "number \1",/' "$work/corpus/a.jsonl"
mkdir "$work/keys"
"${keys[@]}" --output "$work/keys/whole" >/dev/null 2>&1
"${keys[@]}" --output "$work/keys/set" >/dev/null 2>&1 &
pid=$!
while kill -0 $pid 2>/dev/null && [ ! -e "$work/keys/set_text_document.journal.json" ]; do :; done
kill -9 $pid 2>/dev/null || fail "the second key was faster than the kill"
wait $pid 2>/dev/null || true
written=$(stat -c %y%i "$work/keys/set_id_document.bin")
"${keys[@]}" --output "$work/keys/set" >/dev/null 2>"$work/log" || { cat "$work/log" >&2; fail "after a kill in the second key"; }
grep -q 'set_id_document was finished by an earlier run' "$work/log" && grep -q 'going on with an interrupted build' "$work/log" || { cat "$work/log" >&2; fail "begun again"; }
[ "$(stat -c %y%i "$work/keys/set_id_document.bin")" = "$written" ] || fail "the first key was built again"
for key in id text; do
  for suffix in bin idx; do cmp "$work/keys/whole_${key}_document.$suffix" "$work/keys/set_${key}_document.$suffix" || fail "several keys: $key differs"; done
done
echo "killed in the second key, gone on there: the same bytes"
