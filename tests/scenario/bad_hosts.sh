#!/usr/bin/env bash
# `mtctl cluster up` against hosts that are not as the hostfile says: nonsense in the file is refused by line and column before
# anything starts; an unreachable host, a changed host key and a refused key are each told by the host's name and the remedy,
# while the good host comes up.
#   tests/scenario/in_sandbox.sh tests/scenario/bad_hosts.sh [BIN_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../../build/bin}" && pwd)
. "$here/hosts.sh"
. "$here/jobs.sh"
state=$work/state
make_hosts 1

up() { mtctl cluster up --hostfile hosts --state "$state" --ssh-key "${key:-$ssh_folder/user_key}" --known-hosts "${known:-$ssh_folder/known_hosts}" "$@"; }
processes() { pgrep -fa 'mt-(worker|coordinator)' || true; }
nothing_runs() { [ -z "$(processes)" ] || { processes >&2; fail "left running after: $1"; }; }
down() { mtctl -q cluster down --state "$state" --now > /dev/null; nothing_runs "$1"; rm -rf "$state"; }

echo "== nonsense in the hostfile"
nonsense() {  # LINE PLACE PATTERN
  printf '# two machines\n10.77.0.1 slots=2\n%s\n' "$1" > hosts
  refused 5 "hosts:$2" "$3" -- up
  ! grep -q 'many' "$work/said" || [ "$3" = many ] || fail "what was refused before is told again"
  nothing_runs "$1"
  [ ! -e "$state/endpoint.json" ] || fail "a coordinator has been there"
}
nonsense 'h2 slots=many' 3:10 'many'
nonsense 'h2 slot=2' 3:4 'slots'
nonsense '10.77.0.1' 3:1 'line 2|twice|duplicate'
nonsense 'h[3-1]' 3: '3-1'
nonsense 'h2 port=99999' 3: '99999'
refused 3 'absent' -- mtctl cluster up --hostfile absent --state "$state"

echo "== an unreachable host: the good one comes up"
printf 'root@10.77.0.1 slots=2\nroot@10.77.0.9 slots=2\n' > hosts
refused 5 '10\.77\.0\.9' 'reach|route|connect' -- up
states=$(mtctl nodes -o json | python3 -c 'import json,sys; print(*(node["name"] + ":" + node["state"] for node in json.load(sys.stdin)))')
[ "$states" = "10.77.0.1:ready 10.77.0.9:down" ] || fail "nodes are $states"
down "unreachable host"

printf 'root@10.77.0.1 slots=2\n' > hosts
echo "== a changed host key"
ssh-keygen -q -t ed25519 -N '' -f "$work/other_key"
echo "10.77.0.1 $(cut -d' ' -f1,2 "$work/other_key.pub")" > changed
known=$work/changed refused 5 '10\.77\.0\.1' 'host key' 'ssh-keygen -R|known_hosts|changed' -- up
down "changed host key"
echo "== an unknown host"
: > unknown
known=$work/unknown refused 5 '10\.77\.0\.1' 'host key|known' -- up
down "unknown host key"
echo "== a refused key"
key=$work/other_key refused 5 '10\.77\.0\.1' 'root' 'key|authenti' -- up
down "refused key"

echo "== and what is right still comes up"
up
down "a good cluster"
echo "OK"
