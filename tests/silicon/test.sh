#!/bin/sh
# test.sh: the kit from end to end on the emulated device, from its archive, in a folder without the repository: packed, unpacked, every part run at
# reduced sizes, and then what it says when something is wrong. The machine that it finds is made up: CUDA's libraries where a driver and python's
# packages would have them, one of another version; a profiler and a checker that run the program and print what the vendor's would.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() {
    echo "tests/silicon/test.sh: $1" >&2
    [ ! -e "$folder/report/report.md" ] || cat "$folder/report/report.md" >&2
    exit 1
}

sh "$here/pack.sh" --suites "cuda traps" "$folder/kit.tar.xz"
mkdir "$folder/elsewhere"
tar -C "$folder/elsewhere" -xf "$folder/kit.tar.xz"
kit=$folder/elsewhere/margin-loss-kit

packages=$folder/python/nvidia/cu13/lib
mkdir -p "$folder/driver" "$folder/bin" "$packages"
cp "$target/release/libptx_emulator_driver.so" "$folder/driver/libcuda.so.1"
ln -s "$folder/driver/libcuda.so.1" "$packages/libcublas.so.12"
ln -s "$folder/driver/libcuda.so.1" "$packages/libcurand.so.10"
runtime=$folder/python/nvidia/cuda_runtime/lib
mkdir -p "$runtime"
ln -s "$folder/driver/libcuda.so.1" "$runtime/libcudart.so.12"

cat >"$folder/bin/nvidia-smi" <<'END'
#!/bin/sh
echo "name, driver_version"
echo "made up for a test, 0"
END
cat >"$folder/bin/compute-sanitizer" <<'END'
#!/bin/sh
while [ "${1#/}" = "$1" ]; do shift; done
"$@" && echo "========= ERROR SUMMARY: 0 errors, made up for a test"
END
cat >"$folder/bin/ncu" <<'END'
#!/bin/sh
case " $* " in *" --metrics "*) echo "==ERROR== Failed to find metric, made up for a test"; exit 1 ;; esac
while [ "${1#/}" = "$1" ]; do shift; done
echo '"ID","Kernel Name","Metric Name","Metric Value"'
echo '"0","fused_step_bf16_tensor(MarginLossCall, MarginLossChunk)","dram__bytes_read.sum","1,234,560"'
END
chmod +x "$folder/bin"/*

python=$(dirname "$(python3 -c 'import sys; print(sys.executable)')")
run() { # NAME=VALUE… -- OPTIONS…
    variables=""
    while [ "$1" != -- ]; do variables="$variables $1"; shift; done
    shift
    # shellcheck disable=SC2086
    (cd / && env -i PATH="$folder/bin:$python:/usr/bin:/bin" HOME="$folder" LD_LIBRARY_PATH="$folder/driver" PYTHONPATH="$folder/python" \
        PTX_EMULATOR_MULTIPROCESSORS=4 PTX_EMULATOR_UNWRITTEN=error $variables sh "$kit/run.sh" --reduced --out "$folder/report" "$@")
}
says() { grep -q -- "$1" "$folder/report/report.md" || fail "the report does not say $1"; }

run -- || fail "a part failed"
for title in "Device, driver, clocks" Ceilings "Loading the modules" "Against the CPU path" "The suites" "The vendor's checkers" Times \
    "The profiler's counters" "Capture and replay" "Beyond 32 bits"; do
    says "^| \[$title\](.*| ok |"
done
says '^| \[PyTorch\](.*| not run |.*python'
says '\*\*REDUCED\*\*'
says "libcublas.so.13: $packages/libcublas.so.12"
says "libcudart.so.12: $runtime/libcudart.so.12"
says 'ERROR SUMMARY: 0 errors'
says 'by sections, since the metrics gave nothing'
says '| 64, 100, 64 | bf16 | loss_and_grads_into | .* | 1.00 | [0-9.]* | '
bytes=$(cat "$folder"/report/* | wc -c)
[ "$bytes" -lt 200000 ] || fail "the report has $bytes bytes"
cp "$folder/report/report.md" "$target/silicon/report-on-the-emulated-device.md"

# Kernels that are wrong: the exponential is a logarithm.
mkdir "$folder/wrong"
sed 's/ex2\.approx\.ftz\.f32/lg2.approx.ftz.f32/' "$kit/ptx/fused_step.ptx" >"$folder/wrong/fused_step.ptx"
if run PTX_EMULATOR_REPLACE="$folder/wrong" -- --only check,times; then fail "wrong kernels pass"; fi
says '^| \[Against the CPU path\](.*| \*\*FAILED\*\* |'
says '^| \[Times\](.*| \*\*FAILED\*\* |'
says 'size 9, 67, 33; type bf16; way as it comes; .*\*\*loss is off by .* times what is allowed'
says 'way check; .*loss_and_grads_into: loss is off by'

# A module that is none: the others are loaded.
cp "$kit/ptx/scale.ptx" "$folder/scale.ptx"
echo "no PTX .entry scale(" >"$kit/ptx/scale.ptx"
if run -- --only load; then fail "a module that is none is loaded"; fi
says 'what module scale'
says '^| module stream_forward | [0-9.]'
cp "$folder/scale.ptx" "$kit/ptx/scale.ptx"

# No time, and a library that is not there: a report all the same.
run -- --seconds 2 || fail "no time is no failure"
says 'no time was left of 2 s'
rm "$packages/libcurand.so.10"
if run -- --only device,ceilings; then fail "it runs without cuRAND"; fi
says 'libcurand.so.10: \*\*not found\*\*'
says 'libcurand.so.10: cannot open shared object file'

echo "tests/silicon: the kit runs on the emulated device, and says what is wrong"
