#!/bin/sh
# Runs every test that this machine can run, and prints what it skipped and why.
set -eu
cd "$(dirname "$0")"

skipped=""
skip() { skipped="$skipped
  $1: $2"; }

# CUDA code is compiled by nvcc: what CUDA_HOME or the PATH has, or what PyPI brings (about 280 MB, once, into target/).
nvcc=yes
if [ -z "${CUDA_HOME:-}" ] && ! command -v nvcc >/dev/null 2>&1; then
    if CUDA_HOME=$(sh tests/emulator/toolkit.sh); then
        export CUDA_HOME
    else
        unset CUDA_HOME
        nvcc=no
        skip "kernels on the emulated GPU (tests/emulator/tests, --features cuda)" "no nvcc, and it could not be installed (see above)"
    fi
fi

cargo test --release --workspace

# CUDA on the emulated GPU: the composed loss, and Candle's own kernels.
if [ "$nvcc" = yes ]; then
    sh tests/emulator/run.sh cargo test --release --features cuda --test cuda --test candle_cuda
fi

# The PyTorch reference, where some python3 has torch: it is large, and its golden cases are committed.
python=""
for candidate in python3 /usr/bin/python3; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import torch, pytest, numpy' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -n "$python" ]; then
    "$python" -m pytest -q python-ref
else
    skip "python-ref/test_reference.py" "no python3 with torch, numpy and pytest; python-ref/README.md says how to install them"
fi

if [ -n "$skipped" ]; then
    printf '\nSKIPPED:%s\n' "$skipped"
else
    printf '\nNothing was skipped.\n'
fi
