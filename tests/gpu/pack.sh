#!/usr/bin/env bash
# Packs what tests/gpu/run.sh needs on a machine that has a GPU and none of our packages: the worker bundle, mtctl and the
# coordinator, test programs and benchmarks, golden files, a small dataset. NVIDIA's libraries stay behind: they are found there.
#
#   tests/gpu/pack.sh [BUILD_FOLDER]     default build/gpu-build, configured here for sm_90a alone
#
# Makes build/gpu-pack/pack.tar.gz (ignored by git), whole or not at all. MT_GPU_PACK_LIMIT_MIB (55) bounds it. A plug-in without
# cuDNN's attention is refused, unless MT_GPU_PACK_WITHOUT_CUDNN is set: what it would measure is not what people get.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${1:-$root/build/gpu-build}
out=$root/build/gpu-pack
limit=${MT_GPU_PACK_LIMIT_MIB:-55}
programs=(mtctl mt-coordinator mt-bench mt-kernel-bench)
tests=(kernels_conformance_test kernels_cuda_attention_test golden_test)
glibc='^(ld-linux.*|libc|libm|libpthread|libdl|librt|libresolv|libutil|libanl)\.so'

if [ ! -f "$build/build.ninja" ]; then
  cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DMT_CUDA_ARCHITECTURES=90a-real > "$build.log" 2>&1 ||
    { tail -n 20 "$build.log" >&2; exit 1; }
fi
plugins=(mt_backend_emulated)
ninja -C "$build" -t query mt_backend_cuda > /dev/null 2>&1 && plugins+=(mt_backend_cuda) || echo "pack: no CUDA toolkit here: without libmt_backend_cuda.so"
ninja -C "$build" "${programs[@]}" "${tests[@]}" "${plugins[@]}" bundle

if [ -f "$build/bin/libmt_backend_cuda.so" ] && [ -z "${MT_GPU_PACK_WITHOUT_CUDNN:-}" ] &&
  grep -qa 'built without cudnn-frontend' "$build/bin/libmt_backend_cuda.so"; then
  echo "pack: libmt_backend_cuda.so has no cuDNN attention: run deploy/install-deps.sh, which fetches cudnn-frontend, configure and build again" >&2
  exit 1
fi
mkdir -p "$out"
new=$(mktemp -d "$out/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
mkdir "$new"/{bin,tests,data}
cp -r "$build/bundle" "$new/bundle"
for plugin in "${plugins[@]}"; do
  [ -e "$new/bundle/lib$plugin.so" ] || [ -e "$new/bundle/lib$plugin.so.gz" ] || cp "$build/bin/lib$plugin.so" "$new/bin/"
done
for name in "${programs[@]}"; do cp "$build/bin/$name" "$new/bin/"; done
for name in "${tests[@]}"; do cp "$build/test/$name" "$new/bin/"; done
# The coordinator starts the bundle's worker.
ln -s ../bundle/mt-worker "$new/bin/mt-worker"

# Libraries: the bundle's where it has them, else a copy beside the programs; nothing but glibc's own from the machine.
for file in "$new"/bin/*; do
  [ -L "$file" ] && continue
  ldd "$file" | while read -r name arrow path _; do
    [ "$arrow" = "=>" ] || continue
    [ "$path" != not ] || { echo "pack: $(basename "$file") needs $name, which is not installed" >&2; exit 1; }
    [[ $name =~ $glibc ]] || [ -e "$new/bundle/$name" ] || [ -e "$new/bundle/$name.gz" ] || cp -nL "$path" "$new/bin/$name"
  done
done
for file in "$new"/bin/*; do
  [ -L "$file" ] && continue
  chmod 0755 "$file"
  strip --strip-unneeded "$file" 2> /dev/null || true
  patchelf --set-rpath '$ORIGIN:$ORIGIN/../bundle' "$file"
done

mkdir "$new/tests/golden"
cp -r "$root"/tests/golden/*/ "$new/tests/golden/"
cp "$root/bench/train_peer.py" "$new/tests/"
# Our own documentation is a text that is always there.
find "$root/docs" "$root/README.md" -name '*.md' | LC_ALL=C sort | xargs cat > "$new/data/text.txt"
MT_CONFIG_DIR=$new/none "$build/bin/mtctl" -q data build "$new/data/text.txt" --tokenizer byte --output "$new/data/text" > /dev/null
commit=$(git -C "$root" rev-parse --short HEAD)
git -C "$root" diff --quiet HEAD || commit+=" with changes"
echo "$commit" > "$new/COMMIT"

tar -C "$new" --sort=name --owner=0 --group=0 -cf - . | gzip -9 > "$out/pack.tar.gz.new"
size=$(($(stat -c %s "$out/pack.tar.gz.new") / 1048576))
[ "$size" -le "$limit" ] || { echo "pack: $size MiB are more than $limit; the largest files:" >&2; (cd "$new" && ls -lS bin bundle | sort -k5 -rn | head -n 8) >&2; exit 1; }
mv "$out/pack.tar.gz.new" "$out/pack.tar.gz"
echo "pack: $size MiB in $out/pack.tar.gz"
