#!/bin/sh
# pack.sh [--suites "NAME …"] [ARCHIVE]: makes the archive that tests a machine with a GPU, to be run there as
#
#     tar -xf margin-loss-kit.tar.xz && sh margin-loss-kit/run.sh --out FOLDER
#
# without cargo, nvcc or a network: stripped test programs of the suites, the benchmark, the modules' PTX and what run.sh needs. Everything is built
# as for the emulated GPU (tests/emulator/run.sh), whose one library stands for all of CUDA's. A program of that build asks the loader for libcuda.so
# alone: the archive brings one without any symbol, which asks for CUDA's libraries by their own names.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
suites="cuda driver tf32 golden oracle gradient traps errors candle users companions row_margins"
if [ "${1:-}" = --suites ]; then
    suites=$2
    shift 2
fi
archive=${1:-$target/silicon/margin-loss-kit.tar.xz}
limit=$((60 << 20))
newest_glibc=2.35 # Ubuntu 22.04's; Debian 12 has 2.36

cd "$root"
work=$target/silicon
stage=$work/margin-loss-kit
rm -rf "$stage"
mkdir -p "$stage/bin" "$stage/suites" "$stage/ptx" "$stage/lib" "$stage/torch" "$work/stubs"

flags=""
for suite in $suites; do flags="$flags --test $suite"; done
# shellcheck disable=SC2086
sh tests/emulator/run.sh cargo test --release --features cuda --no-run --message-format=json-render-diagnostics $flags >"$work/messages"
# As test.sh runs it.
sh tests/emulator/run.sh cargo bench --features cuda --no-run --message-format=json-render-diagnostics --bench cuda >>"$work/messages"
cargo build --release -p silicon-kit

# The program of a target: KIND NAME.
program() {
    grep -F "\"kind\":[\"$1\"],\"crate_types\":[\"bin\"],\"name\":\"$2\"" "$work/messages" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}
take() {
    from=$(program "$1" "$2")
    [ -n "$from" ] || { echo "pack.sh: cargo names no program of $1 $2" >&2; exit 1; }
    strip -o "$3" "$from"
}
take bench cuda "$stage/bin/cuda"
for suite in $suites; do take test "$suite" "$stage/suites/$suite"; done
cp "$target/release/kit" "$stage/kit"
strip "$stage/kit"

# What the programs want of the machine: libcuda.so of the emulated kind, the C library, nothing else.
wanted=cuda
newest=0
for program in "$stage"/bin/* "$stage"/suites/* "$stage/kit"; do
    for library in $(readelf -d "$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        case $library in
            libcuda.so | libgcc_s.so.1 | libm.so.6 | libc.so.6 | ld-linux-*.so.2 | libstdc++.so.6) ;;
            *) echo "pack.sh: $program asks for $library, which the kit does not bring" >&2; exit 1 ;;
        esac
    done
    if readelf -d "$program" | grep -Eq 'RPATH|RUNPATH'; then
        echo "pack.sh: $program looks into a folder of this machine" >&2
        exit 1
    fi
    symbols=$(nm -D --undefined-only "$program" | awk '{ print $NF }')
    # LIBRARY:PREFIX of its functions, before a capital letter.
    for library in cublasLt:cublasLt cublas:cublas curand:curand nvrtc:nvrtc cudart:cuda; do
        if echo "$symbols" | grep -Eq "^${library#*:}[A-Z]"; then wanted="$wanted ${library%:*}"; fi
    done
    glibc=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
    newest=$(printf '%s\n%s\n' "$newest" "${glibc#GLIBC_}" | sort -V | tail -n 1)
done
if [ "$(printf '%s\n%s\n' "$newest" "$newest_glibc" | sort -V | tail -n 1)" != "$newest_glibc" ]; then
    echo "pack.sh: the programs want glibc $newest, newer than $newest_glibc" >&2
    exit 1
fi
for library in $(printf '%s\n' $wanted | sort -u); do
    case $library in
        cuda) name=libcuda.so.1 ;;
        curand) name=libcurand.so.10 ;;
        *) name=lib$library.so.13 ;;
    esac
    cc -shared -nostdlib -Wl,-soname,"$name" -x c /dev/null -o "$work/stubs/lib$library.so"
    echo "$name"
done >"$stage/lib/wanted"
libraries=$(sed 's/^lib\([A-Za-z]*\)\.so.*/-l\1/' "$stage/lib/wanted" | tr '\n' ' ')
# shellcheck disable=SC2086
cc -shared -nostdlib -Wl,-soname,libcuda.so -Wl,--no-as-needed -x c /dev/null -o "$stage/lib/libcuda.so" -L"$work/stubs" $libraries

# The modules as the programs have them, and the probes.
out=""
for folder in $(grep -F '"reason":"build-script-executed"' "$work/messages" | sed -n 's/.*"out_dir":"\([^"]*\)".*/\1/p'); do
    [ ! -e "$folder/fused_step.ptx" ] || out=$folder
done
[ -n "$out" ] || { echo "pack.sh: cargo names no folder with fused_step.ptx" >&2; exit 1; }
cp "$out"/*.ptx "$stage/ptx/"
sh tests/emulator/run.sh nvcc -std=c++17 -lineinfo --ptx -Werror all-warnings -arch=compute_80 -o "$stage/ptx/probe.ptx" tests/silicon/probe.cu

cp "$here/run.sh" "$here/predictions.json" "$stage/"
cp "$here/torch_step.py" python-ref/bench_torch.py python-ref/reference.py "$stage/torch/"
"$stage/kit" figures kernels/figures.md >"$stage/figures.json"
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain 2>/dev/null)" ] || commit="$commit and changes"
nvcc=$(sed -n 's/^\/\/ Cuda compilation tools, //p' "$stage/ptx/fused_step.ptx")
cat >"$stage/manifest.json" <<END
{ "commit": "$commit", "packed": "$(date -u +%Y-%m-%dT%H:%MZ)", "nvcc": "$nvcc", "glibc": "$newest", "suites": "$suites" }
END

# Programs have most of their bytes in common, Candle's PTX, and lie next to each other: a window larger than one of them finds that.
mkdir -p "$(dirname "$archive")"
rm -f "$archive"
tar -C "$work" --sort=name --owner=0 --group=0 -cf - margin-loss-kit | xz -T1 --lzma2=preset=1,dict=128MiB >"$archive"
bytes=$(wc -c <"$archive")
if [ "$bytes" -ge "$limit" ]; then
    echo "pack.sh: $archive has $bytes bytes, 60 MiB is the limit" >&2
    exit 1
fi
echo "$archive: $((bytes >> 10)) KiB, $(du -sm "$stage" | cut -f 1) MiB unpacked; glibc $newest; $(tr '\n' ' ' <"$stage/lib/wanted")"
