# Hosts of a scenario: network namespaces on one bridge, each with its own address, host name and sshd. Sourced by scenarios
# that run within in_sandbox.sh, which takes everything away again.
#   make_hosts N      h1..hN at 10.77.0.1..N; we are 10.77.0.254; keys and known_hosts in $MT_SCENARIO_FOLDER/ssh
#   start_sshd hK     (again, after kill_host)
#   HOST_PREPARE      a script that each host runs first, with its name, in a mount namespace of its own
#   kill_host hK      kill -9 of every process in the namespace: the machine's power is cut
ssh_folder=$MT_SCENARIO_FOLDER/ssh

make_hosts() {
  local n=$1 i
  mkdir -p "$ssh_folder"
  ssh-keygen -q -t ed25519 -N '' -f "$ssh_folder/user_key"
  ip link add br0 type bridge
  ip addr add 10.77.0.254/24 dev br0
  ip link set br0 up
  for i in $(seq "$n"); do
    ip netns add "h$i"
    ip link add "v$i" type veth peer name eth0 netns "h$i"
    ip link set "v$i" master br0 up
    ip -n "h$i" link set lo up
    ip -n "h$i" addr add "10.77.0.$i/24" dev eth0
    ip -n "h$i" link set eth0 up
    ssh-keygen -q -t ed25519 -N '' -f "$ssh_folder/h$i.key"
    cat > "$ssh_folder/h$i.conf" <<EOF
Port 22
ListenAddress 10.77.0.$i
HostKey $ssh_folder/h$i.key
AuthorizedKeysFile $ssh_folder/user_key.pub
PidFile $ssh_folder/h$i.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
EOF
    echo "10.77.0.$i $(cut -d' ' -f1,2 "$ssh_folder/h$i.key.pub")" >> "$ssh_folder/known_hosts"
    start_sshd "h$i"
  done
}

# nsenter and not `ip netns exec`, which remounts /sys.
start_sshd() {
  nsenter --net="/run/netns/$1" unshare --uts ${HOST_PREPARE:+--mount} \
    sh -c 'hostname "$1"; [ -z "${HOST_PREPARE:-}" ] || sh "$HOST_PREPARE" "$1"; exec /usr/sbin/sshd -f "$2" -E "$3"' \
    start_sshd "$1" "$ssh_folder/$1.conf" "$ssh_folder/$1.log"
}

# Some of them end because others did, before it is their turn.
kill_host() {
  local pids
  while pids=$(ip netns pids "$1") && [ -n "$pids" ]; do
    kill -9 $pids 2>/dev/null || true
  done
}

# until_true SECONDS WHAT COMMAND...: asks again until it succeeds; fails loudly when the time is over.
until_true() {
  local seconds=$1 what=$2 deadline
  shift 2
  deadline=$(($(date +%s) + seconds))
  until "$@"; do
    if [ "$(date +%s)" -ge "$deadline" ]; then
      echo "FAILED: not within $seconds s: $what" >&2
      return 1
    fi
    sleep 0.1
  done
}
