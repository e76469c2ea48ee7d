#!/bin/sh
# run.sh COMMAND...: runs a command on the emulated GPU, as `sh tests/emulator/run.sh cargo test --release --features cuda`.
# Finds nvcc (CUDA_HOME, then the PATH, then what toolkit.sh installs), builds the driver, and puts it and a quicker nvcc in the command's way.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
home=$target/emulated-cuda
if [ $# -eq 0 ]; then
    echo "usage: run.sh COMMAND..., for instance: run.sh cargo test --release --features cuda" >&2
    exit 2
fi

# A run inside a run has its compiler already.
if [ "${CUDA_HOME:-}" != "$home" ]; then
    if [ -n "${CUDA_HOME:-}" ]; then
        real=$CUDA_HOME
        [ -x "$real/bin/nvcc" ] || { echo "run.sh: CUDA_HOME is set, but there is no $real/bin/nvcc" >&2; exit 1; }
    elif found=$(command -v nvcc); then
        real=$(cd "$(dirname "$(readlink -f "$found")")/.." && pwd)
    else
        real=$(sh "$here/toolkit.sh")
    fi
    mkdir -p "$home/bin" "$home/lib"
    # Written only when they change: Candle's build starts anew when they are newer.
    [ "$(cat "$home/real" 2>/dev/null || true)" = "$real" ] || printf '%s\n' "$real" >"$home/real"
    cmp -s "$here/nvcc.sh" "$home/bin/nvcc" || { cp "$here/nvcc.sh" "$home/bin/nvcc"; chmod +x "$home/bin/nvcc"; }
    [ ! -e "$real/bin/ptxas" ] || ln -sfn "$real/bin/ptxas" "$home/bin/ptxas"
    for part in include nvvm; do
        [ ! -e "$real/$part" ] || ln -sfn "$real/$part" "$home/$part"
    done
fi

(cd "$root" && cargo build --quiet --release -p ptx-emulator-driver)
library=$target/release/libptx_emulator_driver.so
for name in libcuda.so libcuda.so.1 libcublas.so libcublasLt.so libcurand.so libnvrtc.so libcudart.so; do
    ln -sfn "$library" "$home/lib/$name"
done

export CUDA_HOME="$home" CUDA_PATH="$home" CUDA_ROOT="$home" NVCC="$home/bin/nvcc" PATH="$home/bin:$PATH"
# bindgen reads kernels/params.h with libclang: what the machine has, or what PyPI brings.
if [ -z "${LIBCLANG_PATH:-}" ] && ! ls /usr/lib/llvm*/lib /usr/lib/*-linux-gnu 2>/dev/null | grep -Eq '^libclang(-[0-9]+)?\.so'; then
    sh "$here/toolkit.sh" bindgen >/dev/null
    export LIBCLANG_PATH="${CUDA_TOOLKIT_DIR:-$root/target/cuda-toolkit}/bindgen/clang/native"
fi
# A result that nobody has written is a mistake of what is tested here.
export PTX_EMULATOR_UNWRITTEN="${PTX_EMULATOR_UNWRITTEN:-error}"
# The emulated device takes PTX alone, for which no machine code is built, and names lines.
export MARGIN_LOSS_CUDA_TARGETS="${MARGIN_LOSS_CUDA_TARGETS:-none}" MARGIN_LOSS_LINEINFO=1
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}" CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-2}"
export LIBRARY_PATH="$home/lib${LIBRARY_PATH:+:$LIBRARY_PATH}" LD_LIBRARY_PATH="$home/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$@"
