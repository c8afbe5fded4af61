#!/usr/bin/env bash
# Makes the worker bundle: mt-worker, its backends and every shared library they need, in one flat folder that runs on any
# x86-64 Linux with a glibc at least as new as this machine's. SSH copies it to the nodes.
#
#   deploy/bundle.sh [BIN_FOLDER [BUNDLE_FOLDER]]      defaults: build/bin build/bundle
#
# Invariants: every library is found through $ORIGIN and nowhere else; only glibc's own libraries come from the machine (they
# must fit its loader and its kernel); MANIFEST lists every file's SHA-256 in a fixed order, so equal contents give an equal
# digest (the SHA-256 of MANIFEST, also in DIGEST). The folder appears whole or not at all. Libraries above 8 MiB are
# gzipped; mt-worker unpacks them beside itself at its first start (worker/unpack_libraries.h) and itself needs none of them.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${1:-$root/build/bin}
bundle=${2:-$root/build/bundle}
limit_bytes=$((50 * 1024 * 1024))
glibc='^(ld-linux.*|libc|libm|libpthread|libdl|librt|libresolv|libutil|libanl|libnsl|libnss_.*|libBrokenLocale|libthread_db)\.so'

[ -x "$bin/mt-worker" ] || { echo "bundle: $bin/mt-worker is missing; build it first (ninja -C build mt-worker)" >&2; exit 1; }
mkdir -p "$(dirname "$bundle")"
new=$(mktemp -d "$bundle.new.XXXXXX")
trap 'rm -rf "$new"' EXIT

cp "$bin/mt-worker" "$new/"
for plugin in "$bin"/libmt_backend_*.so; do
  # Test plug-ins carry a marker section or live elsewhere; only the real backends are shipped.
  case $(basename "$plugin") in
    libmt_backend_cpu.so|libmt_backend_reference.so|libmt_backend_cuda.so|libmt_backend_musa.so|libmt_backend_txda.so) cp "$plugin" "$new/" ;;
  esac
done

# The closure. ldd resolves transitively; a second pass is not needed because every line is already a file.
for binary in "$new"/*; do
  ldd "$binary" | while read -r name arrow path _; do
    [ "$arrow" = "=>" ] || continue
    if [ "$path" = "not" ]; then echo "bundle: $(basename "$binary") needs $name, which is not installed" >&2; exit 1; fi
    [[ $name =~ $glibc ]] && continue
    [ -e "$new/$name" ] || cp -L "$path" "$new/$name"
  done
done

for file in "$new"/*; do
  chmod 0755 "$file"
  strip --strip-unneeded "$file" 2>/dev/null || true   # a library that is already stripped, or has no symbols
  patchelf --set-rpath '$ORIGIN' "$file"
done

# Proof that nothing but glibc is taken from elsewhere.
for file in "$new"/*; do
  ldd "$file" | while read -r name arrow path _; do
    [ "$arrow" = "=>" ] || continue
    [[ $name =~ $glibc ]] && continue
    if [ "$path" != "$new/$name" ]; then echo "bundle: $(basename "$file") finds $name at $path" >&2; exit 1; fi
  done
done

packed=()
for file in "$new"/*.so*; do
  if [ "$(stat -c %s "$file")" -gt $((8 * 1024 * 1024)) ]; then packed+=("$(basename "$file")"); fi
done
for name in "${packed[@]}"; do
  if ldd "$new/mt-worker" | grep -qF " $new/$name "; then
    echo "bundle: mt-worker itself needs $name, so it cannot be packed" >&2; exit 1
  fi
  gzip -n -6 "$new/$name"
done

(cd "$new" && LC_ALL=C sha256sum -- * > .MANIFEST && mv .MANIFEST MANIFEST)
sha256sum < "$new/MANIFEST" | cut -d' ' -f1 > "$new/DIGEST"
size=$(du -sb "$new" | cut -f1)
if [ "$size" -gt "$limit_bytes" ]; then
  echo "bundle: $size bytes are more than $limit_bytes; the largest files:" >&2
  (cd "$new" && ls -lS | head -n 6) >&2
  exit 1
fi
rm -rf "$bundle"
mv "$new" "$bundle"
trap - EXIT
chmod 0755 "$bundle"
echo "bundle: $(cat "$bundle/DIGEST" | cut -c1-12), $(ls "$bundle" | wc -l) files, $((size / 1024 / 1024)) MiB in $bundle"
