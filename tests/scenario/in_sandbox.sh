#!/usr/bin/env bash
# Runs a command in a sandbox of its own: private network, process, mount and host name spaces, and a private /root. When
# the command ends, however it ends, every process in the sandbox ends with it and nothing is left on the machine.
#   tests/scenario/in_sandbox.sh COMMAND [ARGUMENT...]
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
  echo "skipped: needs root" >&2
  exit 77
fi
folder=$(mktemp -d /tmp/mt-scenario.XXXXXX)
trap 'rm -rf "$folder"' EXIT
export MT_SCENARIO_FOLDER=$folder
# Inside: /run/netns for the hosts' names, /dev/shm that shows what is left, /root for ~/.ssh and ~/.mt, a loopback without gloo's delayed-ACK stall.
unshare --net --pid --mount --uts --fork --mount-proc --kill-child bash -c '
  set -euo pipefail
  mount --make-rprivate /
  mkdir -p /run/netns /run/sshd "$MT_SCENARIO_FOLDER/home"
  mount -t tmpfs tmpfs /run/netns
  mount -t tmpfs tmpfs /dev/shm
  mount --bind "$MT_SCENARIO_FOLDER/home" /root
  export HOME=/root
  hostname coordinator
  ip link set lo up
  "$@"
' in_sandbox "$@"
