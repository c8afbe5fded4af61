# What scenarios ask of mtctl. Sourced within in_sandbox.sh, after hosts.sh. Sets $work, the folder that they work in, and
# makes mtctl keep its settings there.
work=$MT_SCENARIO_FOLDER/work
mkdir -p "$work"
cd "$work"
export PATH=$bin:$PATH MT_CONFIG_DIR=$work/config

# The value of a key of the JSON on standard input: `progress.step`, `ranks.3.pid`; empty if there is none.
field() { python3 -c 'import json,sys
value = json.load(sys.stdin)
for key in sys.argv[1].split("."):
    value = value[int(key)] if isinstance(value, list) else value.get(key, {} if not key.isdigit() else None)
print(value if value not in ({}, None) else "")' "$1"; }
# Of the job $job.
status() { mtctl status "$job" -o json 2>/dev/null | field "$1"; }
step_is_past() { local step; step=$(status progress.step) || return 1; [ "${step:-0}" -ge "$1" ]; }
checkpoint_is_past() { local step; step=$(status last_checkpoint_step) || return 1; [ "${step:--1}" -ge "$1" ]; }
submit() { mtctl submit "$@" -o json | field id; }

build_text() {  # a dataset of text that every Debian has, at $work/text
  cat /usr/share/common-licenses/GPL-3 /usr/share/common-licenses/Apache-2.0 > "$work/text.txt"
  mtctl -q data build "$work/text.txt" --tokenizer byte --output "$work/text" > /dev/null
}

# For `trap report EXIT`: what $job and the coordinator of $state have to say, on the way out of a failure.
state=$work/state
job=
report() {
  local code=$?
  [ "$code" = 0 ] && return
  echo "--- FAILED (exit $code); coordinator's log:" >&2
  tail -n 25 "$state/coordinator.log" >&2 || true
  [ -z "$job" ] || { mtctl events "$job" >&2; mtctl describe "$job" >&2; } || true
}

fail() {
  echo "FAILED: $*" >&2
  exit 1
}

# refused CODE 'PATTERN'... -- COMMAND...: the command ends with that exit code, and each pattern (grep -E) is in what it said.
refused() {
  local expected=$1 patterns=() code=0 pattern
  shift
  while [ "$1" != -- ]; do
    patterns+=("$1")
    shift
  done
  shift
  "$@" > "$work/said" 2>&1 || code=$?
  [[ "$code" == $expected ]] || { cat "$work/said" >&2; fail "exit code $code, expected $expected: $*"; }
  for pattern in "${patterns[@]}"; do
    grep -Eq -- "$pattern" "$work/said" || { cat "$work/said" >&2; fail "no \`$pattern\` in what was said by: $*"; }
  done
  sed 's/^/    /' "$work/said"
}
