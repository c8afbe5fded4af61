#!/usr/bin/env bash
# Installs what building and testing mt needs on Debian 12, by package name. Safe to run again: it does nothing, and needs
# no network, when all is there. As root, or with sudo.
#   deploy/install-deps.sh             install what is missing
#   deploy/install-deps.sh --product   only what building and running mt needs, not its tests (cmake -DMT_BUILD_TESTS=OFF)
#   deploy/install-deps.sh --list      print the package names, one per line
#   deploy/install-deps.sh --check     print what is missing; exit 1 if anything is
set -euo pipefail

packages=(
  # Compiler, linker, build: lld and ccache are used when present and make a rebuild several times faster.
  cmake ninja-build g++ lld ccache pkg-config git ca-certificates
  # gRPC, protobuf and Abseil: the contracts between processes.
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev libabsl-dev
  # TLS and certificates; SSH bootstrap; the coordinator's state; its metrics.
  libssl-dev libssh-dev libsqlite3-dev prometheus-cpp-dev
  # CPU kernels: oneDNN (whose CMake file asks for the OpenCL headers) and Highway.
  libdnnl-dev ocl-icd-opencl-dev libhwy-dev
  # Collectives between hosts.
  libgloo-dev
  # Job specs, manifests, the command line, digests, tokenizers.
  libyaml-cpp-dev nlohmann-json3-dev libcli11-dev libxxhash-dev libsentencepiece-dev
  # Text: JSON lines, compressed files, Unicode, unknown pre-tokenizer patterns.
  libsimdjson-dev libzstd-dev zlib1g-dev libutf8proc-dev libpcre2-dev
  # The worker bundle: sets its libraries' run paths.
  patchelf
  # Scripts.
  iproute2 procps curl openssl python3
  # The quickstart's text: 4.4 MB of English in the public domain.
  bible-kjv
)
tests=(
  # GoogleTest; real sshd and network namespaces; a real Prometheus, with promtool.
  libgtest-dev libgmock-dev
  openssh-server openssh-client openssh-sftp-server prometheus sqlite3
  # Compressed inputs of the data scenarios.
  zstd
  # The portable kernels are compiled for AMD: 66 MB to fetch, 350 MB on disk, half a minute.
  hipcc
  # Style checks.
  clang-format
)
if [ "${1:-}" = --product ]; then shift; else packages+=("${tests[@]}"); fi

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done

case "${1:-}" in
  --list) printf '%s\n' "${packages[@]}"; exit 0 ;;
  --check)
    [ ${#missing[@]} -eq 0 ] && exit 0
    echo "missing: ${missing[*]} (deploy/install-deps.sh installs them)" >&2
    exit 1 ;;
  "") ;;
  *) echo "install-deps.sh: unknown argument $1 (use --product, --list, --check or nothing)" >&2; exit 2 ;;
esac

# The headers of cudnn-frontend (MIT licence) for the CUDA backend's cuDNN attention, from its Python package, where there is a
# CUDA compiler to build it with. Nothing is installed: they go to build/third_party. Without them that attention is left out.
fetch_cudnn_frontend() {
  local target wheel version=1.18.0
  local digest=382ea063b92cbfd5b442cb75ff8422932d78276aecf139e46713ed1ad3d07af4
  target=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/third_party/cudnn_frontend
  command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || return 0
  [ ! -f "$target/include/cudnn_frontend.h" ] || return 0
  if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "install-deps.sh: no pip: the CUDA backend will have no cuDNN attention (its own kernels remain)" >&2
    return 0
  fi
  echo "fetching the headers of cudnn-frontend $version to $target" >&2
  mkdir -p "$target"
  if ! python3 -m pip -q --disable-pip-version-check download --no-deps --only-binary=:all: --python-version 3.11 \
      --platform manylinux_2_28_x86_64 --dest "$target" "nvidia-cudnn-frontend==$version" >&2; then
    echo "install-deps.sh: pip could not fetch cudnn-frontend: the CUDA backend will have no cuDNN attention" >&2
    return 0
  fi
  wheel=$(echo "$target"/*.whl)
  echo "$digest  $wheel" | sha256sum --check --quiet
  python3 - "$wheel" "$target" <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if name.startswith("include/") or "LICENSE" in name:
            wheel.extract(name, sys.argv[2])
PYTHON
  rm -f "$wheel"
}
fetch_cudnn_frontend
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "install-deps.sh: no apt-get here; install the equivalents of: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install-deps.sh: run it as root, or install sudo" >&2; exit 1; }
  as_root=(sudo)
fi

# Debian starts the servers that it installs. Tests start their own sshd and Prometheus, on ports of their own: unless the
# machine has a policy already, none is started here.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "installing ${#missing[@]} packages: ${missing[*]}" >&2
log=$(mktemp)
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1; }
if ! apt install --no-install-recommends "${missing[@]}"; then
  # The package lists may be old or absent.
  if ! { apt update && apt install --no-install-recommends "${missing[@]}"; }; then
    tail -n 30 "$log" >&2
    echo "install-deps.sh: apt-get failed; the whole log is $log" >&2
    exit 1
  fi
fi
rm -f "$log"
