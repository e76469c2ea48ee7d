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

command -v valgrind >/dev/null 2>&1 || skip "tests/instructions.rs" "no valgrind"

skip "fuzzing, tests/fuzz and tests/emulator/tests/fuzz.rs: more than fifteen seconds a target" "MARGIN_LOSS_FUZZ_SECONDS is how long"
MARGIN_LOSS_FUZZ_SECONDS="${MARGIN_LOSS_FUZZ_SECONDS:-15}" cargo test --release --workspace

cargo run --release --example recipes

# The experiments of docs/experiments.md, every loss of them, with little to do.
experiments() {
    RAYON_NUM_THREADS=1 cargo run --release --example experiments -- --classes 20 --seeds 2 --search-seeds 1 --epochs 2 --out target/experiments-test "$@"
}
experiments --embedding-epochs 1
experiments --networks
if [ -d target/fonts/node_modules ]; then
    experiments --corpus glyphs --embedding-epochs 1
else
    skip "the corpus of printed glyphs (tests/experiments.rs, --example experiments -- --corpus glyphs)" "no fonts: sh examples/experiments/fonts.sh fetches them, 650 MB unpacked"
fi

# Every method of the paper's Table 2 by its name, on the same drawings, with little to do; and taken up again where nothing is left to do.
train() {
    RAYON_NUM_THREADS=1 cargo run --release --example train -- --method all --dataset detexify --network patches --teacher-network patches --epochs 2 \
        --warmup-epochs 1 --classes 20 --side 12 --imbalance-factor 10 --lr 0.01 --scale 16 --keys 200 --experts 2 --out target/train-test "$@"
}
train
train --resume

# Classes over ranks, taken up by another number of them; and over processes.
rm -rf target/sharded-test
sharded() { RAYON_NUM_THREADS=1 cargo run --release --example sharded -- --most 6 --out target/sharded-test "$@"; }
sharded --ranks 3 --epochs 1
sharded --ranks 2 --epochs 2 --resume
if sh tests/mpi/run.sh true; then
    sh tests/mpi/run.sh cargo test --release --features mpi --test mpi
else
    skip "tests/mpi: classes over processes" "no mpicc and mpirun, and none could be installed (see above)"
fi

# CUDA on the emulated GPU: our kernels and Candle's own; then the suites of the CPU path on the device, with the kernels that a call takes by
# itself, and with the streaming ones alone on a device of one multiprocessor, whose few blocks loop over what an H100 spreads out. The last
# two run side by side: an emulated device is one thread.
if [ "$nvcc" = yes ]; then
    skip "tests/traps.rs on CUDA: N·C = 4.4·10⁹" "an emulated device takes hours"
    skip "tests/gradient.rs and oracle.rs on CUDA: two of four sizes, 100 of 400 random cases" "minutes of emulation"
    skip "tests/silicon: all suites, sizes that are no emulated device's" "sh tests/silicon/pack.sh makes them, a machine with a GPU runs them"
    skip "tests/figures.rs: N, C, D = 256, 8142, 2048; 256, 1000, 2048 in f32" "half an hour of emulation; MARGIN_LOSS_RECORD=1 runs them"
    skip "tests/emulator/third-party: nine tenths of CUTLASS's, Triton's and FlashAttention's kernels" "sh tests/emulator/run.sh python3 tests/emulator/third-party/suite.py: a quarter of an hour"
    cuda() { sh tests/emulator/run.sh cargo test --release --features cuda "$@"; }
    suites="--test golden --test oracle --test gradient --test errors --test traps --test candle --test companions --test users --test row_margins --test heads"
    # shellcheck disable=SC2086
    cuda --no-run --lib --test cuda --test driver --test tf32 --test candle_cuda --test targets --test figures --test sass --test train $suites
    mkdir -p target/test-logs
    (
        set -e
        cuda --lib cuda
        cuda --test cuda --test driver --test tf32 --test candle_cuda --test targets --test figures
        PTX_EMULATOR_MULTIPROCESSORS=1 cuda --test cuda
        export PTX_EMULATOR_MULTIPROCESSORS=1 MARGIN_LOSS_DEVICE=cuda MARGIN_LOSS_STREAMING=1
        cuda --test golden --test oracle -- f64 lower
        cuda --test gradient --test errors --test traps --test candle --test users --test row_margins
    ) >target/test-logs/streaming 2>&1 &
    streaming=$!
    # shellcheck disable=SC2086
    MARGIN_LOSS_DEVICE=cuda cuda $suites
    # Kernels that nobody here wrote, a tenth of them; what cannot be downloaded is skipped by name.
    sh tests/emulator/run.sh python3 tests/emulator/third-party/suite.py --tenth >target/test-logs/third-party || { cat target/test-logs/third-party; exit 1; }
    cat target/test-logs/third-party
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        name=${line#SKIPPED: }
        skip "${name%%: *}" "${name#*: }"
    done <<end
$(grep '^SKIPPED: ' target/test-logs/third-party || true)
end
    MARGIN_LOSS_DEVICE=cuda cuda --test train -- a_few_steps_of_every_method
    cuda --test sass
    # Every way that the benchmark times, checked and run once, and the main job on the device, with little to do.
    sh tests/emulator/run.sh cargo bench --features cuda --bench cuda -- --test
    sh tests/emulator/run.sh cargo run --release --features cuda --example longtail -- --device cuda --classes 10 --renderings 1 --epochs 2 \
        --losses ce,dbm-bs --seeds 1 --hidden 32 --features 16 --test-per-class 2 --side 10 --out target/longtail-cuda
    # The kit for a machine with a GPU, packed, unpacked and run.
    sh tests/silicon/test.sh
    printf '\nCUDA kernels, and the suites with the streaming kernels:\n'
    if wait "$streaming"; then failed=0; else failed=1; fi
    cat target/test-logs/streaming
    [ "$failed" = 0 ]
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
    export PYTHONPATH="$PWD/target/python${PYTHONPATH:+:$PYTHONPATH}"
    "$python" -c 'import pytorch_metric_learning.losses' 2>/dev/null ||
        skip "python-ref/test_metric_learning.py" "no pytorch-metric-learning; python-ref/README.md says how to install it"
    "$python" -m pytest -q python-ref
    rows=$(mktemp)
    PYTHONPATH=python-ref "$python" tests/silicon/torch_step.py --rows "$rows" --reduced --device cpu
    grep -q '"way": "PyTorch, eager".*"median"' "$rows"
    rm "$rows"
else
    skip "python-ref/test_reference.py" "no python3 with torch, numpy and pytest; python-ref/README.md says how to install them"
fi

if [ -n "$skipped" ]; then
    printf '\nSKIPPED:%s\n' "$skipped"
else
    printf '\nNothing was skipped.\n'
fi
