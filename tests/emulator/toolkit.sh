#!/bin/sh
# toolkit.sh [tools] [bindgen]: installs nvcc 13.0 from PyPI into target/cuda-toolkit and prints the CUDA_HOME to export.
# Does nothing where that has been done. `tools` adds cuobjdump and nvdisasm, in the folder's
# tools/; `bindgen` adds libclang (LIBCLANG_PATH=target/cuda-toolkit/bindgen/clang/native).
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
into=${CUDA_TOOLKIT_DIR:-$root/target/cuda-toolkit}
home=$into/nvidia/cu13
mkdir -p "$into"
# Tests ask for it at the same time: one installs, the others wait.
exec 9>"$into/.lock"
if command -v flock >/dev/null 2>&1; then flock 9; fi
for group in nvcc "$@"; do
    folder=$into/$group # pip replaces what is in a folder
    case $group in
        nvcc) folder=$into wanted="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85" ;;
        tools) wanted="nvidia-cuda-cuobjdump==13.2.86 nvidia-cuda-nvdisasm==13.2.86" ;;
        bindgen) wanted="libclang==18.1.1" ;;
        *) echo "toolkit.sh: no group $group; there are tools and bindgen" >&2; exit 2 ;;
    esac
    [ "$(cat "$into/.installed-$group" 2>/dev/null || true)" != "$wanted" ] || continue
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "toolkit.sh: python3 with pip is needed to install nvcc (Debian: apt-get install python3-pip)" >&2
        exit 1
    fi
    # shellcheck disable=SC2086
    if ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-compile --no-deps --upgrade --target "$folder" $wanted >&2; then
        echo "toolkit.sh: pip could not install: $wanted" >&2
        exit 1
    fi
    chmod +x "$home"/bin/* "$home"/nvvm/bin/* 2>/dev/null || true
    ln -sfn lib "$home/lib64"
    for versioned in "$home"/lib/*.so.*; do
        [ -e "$versioned" ] || continue
        plain=$(basename "$versioned")
        plain=${plain%%.so.*}.so
        [ -e "$home/lib/$plain" ] || ln -s "$(basename "$versioned")" "$home/lib/$plain"
    done
    printf %s "$wanted" >"$into/.installed-$group"
done
echo "$home"
