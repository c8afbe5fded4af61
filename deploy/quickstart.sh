#!/usr/bin/env bash
# From a fresh Debian 12 machine to a trained model in one command: installs what is missing, builds, starts a cluster of two
# nodes with two slots each on this machine, trains a small Llama on real text with TP2×DP2, kills one rank on the way to show
# that nothing is lost, samples from the result, and cleans up after itself.
#
#   deploy/quickstart.sh [--keep]      --keep leaves the cluster running and its folder in place
set -euo pipefail
cd "$(dirname "$0")/.."

keep=0
case "${1:-}" in
  --keep) keep=1 ;;
  "") ;;
  *) echo "usage: deploy/quickstart.sh [--keep]" >&2; exit 2 ;;
esac

step() { printf '\n== %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
# The value of a number in `mtctl ... -o json`: first occurrence.
number() { sed -n "s/^ *\"$1\": *\"\{0,1\}\(-\{0,1\}[0-9.e+-]*\).*/\1/p" | head -n "${2:-1}" | tail -n 1; }

step "1/6 Dependencies"
deploy/install-deps.sh --product

step "2/6 Build"
# Compiling for GPUs takes minutes; where there is none, this run does not need it.
cuda=AUTO
[ -e /dev/nvidiactl ] || cuda=OFF
cmake --preset release -DMT_CUDA="$cuda" -DMT_BUILD_TESTS=OFF >/dev/null
cmake --build --preset release --target product
export PATH="$PWD/build/bin:$PATH"

work=$(mktemp -d -t mt-quickstart.XXXXXX)
export MT_CONFIG_DIR="$work/config"
up=0
cleanup() {
  local code=$?
  [ "$keep" = 1 ] && [ "$code" = 0 ] && return
  [ "$up" = 1 ] && { mtctl -q dev down --now --state "$work/cluster" || true; }
  if [ "$code" = 0 ]; then rm -rf "$work"; else echo "quickstart.sh: failed with exit code $code; logs are under $work" >&2; fi
}
trap cleanup EXIT

step "3/6 Data: the King James Bible to Megatron's .bin/.idx"
deploy/quickstart-text.sh > "$work/text.txt"
show mtctl data build "$work/text.txt" --tokenizer byte --document-separator '' --output "$work/text"

step "4/6 A cluster of 2 nodes × 2 slots on this machine"
up=1
show mtctl dev up --nodes 2 --slots 2 --state "$work/cluster"

step "5/6 Train a Llama of 7 M parameters with TP2×DP2, and kill a rank on the way"
show mtctl plan examples/quickstart.yaml --set data.train="$work/text"
job=$(mtctl -q submit examples/quickstart.yaml --set data.train="$work/text")
mtctl logs -f "$job" --rank 0 &
logs=$!
# The step after the second checkpoint: what is repeated is little, and visible.
while :; do
  now=$(mtctl status "$job" -o json)
  state=$(sed -n 's/^  "state": "\(.*\)",*/\1/p' <<<"$now")
  case "$state" in succeeded | failed | cancelled) break ;; esac
  checkpoint=$(number last_checkpoint_step <<<"$now")
  [ "${checkpoint:--1}" -ge 20 ] && break
  read -rt 0.5 _ <> <(:) || true
done
victim=$(number pid 4 <<<"$now")
echo ">>> kill -9 $victim   (rank 3)"
kill -9 "$victim"
mtctl -q wait "$job" >/dev/null
wait "$logs"
show mtctl describe "$job" | sed '/^OPERATION/,$d'
show mtctl events "$job"
first=$(mtctl -q logs "$job" --rank 0 --attempt 1 | sed -n 's/.*step  *1\/.*| loss \([0-9.]*\).*/\1/p' | head -n 1)
last=$(number loss <<<"$(mtctl status "$job" -o json)")
restarts=$(number restarts <<<"$(mtctl status "$job" -o json)")
awk -v a="$first" -v b="$last" -v r="$restarts" 'BEGIN {
  if (!(b < 0.6 * a)) { print "the loss did not fall: " a " to " b > "/dev/stderr"; exit 1 }
  if (r < 1) { print "no restart was seen" > "/dev/stderr"; exit 1 }
  printf "loss %.3f -> %.3f, %d restart, nothing lost\n", a, b, r }'

step "6/6 Sample from it"
show mtctl generate "$job" --prompt "And the LORD said " --max-tokens 120

endpoint=$(mtctl cluster status -o json | sed -n 's/^ *"metrics_address": "\(.*\)",*/\1/p')
step "Done"
if [ "$keep" = 1 ]; then
  cat <<END
The cluster is still up (folder $work):
  metrics     $endpoint
Next:
  export PATH=$PWD/build/bin:\$PATH MT_CONFIG_DIR=$work/config
  mtctl top
  mtctl submit examples/pipeline.yaml --set data.train=$work/text --follow
  mtctl dev down --state $work/cluster --purge
END
else
  cat <<END
The cluster has been taken down and its folder removed (metrics were at $endpoint). Next, with build/bin in your PATH:
  deploy/quickstart.sh --keep                       the same, and the cluster stays for you to look around: mtctl top
  mtctl dev up && mtctl submit JOB.yaml --follow    your own job; docs/guide/job-spec.md has every key
  mtctl cluster up --hostfile HOSTS                 your own machines; docs/guide/tour.md shows the house
END
fi
