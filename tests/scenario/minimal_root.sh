#!/usr/bin/env bash
# The worker bundle on a machine that has nothing but glibc: a root folder with the loader, glibc's libraries and the bundle.
# mt-worker must start there, unpack what is packed, and find its backends.
#   tests/scenario/in_sandbox.sh tests/scenario/minimal_root.sh [BUNDLE_FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bundle=$(cd "${1:-$here/../../build/bundle}" && pwd)
root=$MT_SCENARIO_FOLDER/minimal
mkdir -p "$root"/{lib64,lib/x86_64-linux-gnu,proc,dev,tmp,etc,bundle,state}
for name in libc libm libpthread libdl librt libresolv; do
  cp -L "/lib/x86_64-linux-gnu/$name.so."* "$root/lib/x86_64-linux-gnu/"
done
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
cp "$bundle"/* "$root/bundle/"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"

size=$(du -sb "$bundle" | cut -f1)
[ "$size" -le $((50 * 1024 * 1024)) ] || { echo "FAILED: the bundle has $size bytes" >&2; exit 1; }
[ "$(sha256sum < "$bundle/MANIFEST" | cut -d' ' -f1)" = "$(cat "$bundle/DIGEST")" ]
chroot "$root" /bundle/mt-worker version
# A daemon probes its backends when it starts and says so; nobody is at the coordinator's address, which it bears.
chroot "$root" /bundle/mt-worker daemon --node lonely --coordinator 127.0.0.1:1 --state /state --slots 1 --interface lo --insecure \
  > "$root/daemon.log" 2>&1 &
daemon=$!
. "$here/hosts.sh"
until_true 60 "the daemon says that the cpu backend works" grep -q 'backend cpu' "$root/daemon.log" || { cat "$root/daemon.log" >&2; exit 1; }
kill -TERM "$daemon"
wait "$daemon"
grep 'backend' "$root/daemon.log"
echo "OK: $((size / 1024 / 1024)) MiB, starts with glibc alone"
