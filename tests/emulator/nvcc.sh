#!/bin/sh
# nvcc, but quick with what Candle's build script compiles and no test here runs: the quantised kernels. Their PTX is left empty, and their
# library gets functions that stop the process with their name. Everything else is the compiler whose folder stands in ../real.
set -eu
self=$(cd "$(dirname "$0")/.." && pwd)
real=$(cat "$self/real")/bin/nvcc

mode="" output="" folder="" source=""
previous=""
for argument in "$@"; do
    case $previous in
        -o) output=$argument ;;
        --output-directory) folder=$argument ;;
    esac
    case $argument in
        --ptx) mode=ptx ;;
        -c) mode=object ;;
        --lib) mode=library ;;
        *.cu) source=$argument ;;
    esac
    previous=$argument
done

case $mode:$source in
    ptx:*/quantized.cu | ptx:quantized.cu)
        printf '.version 8.0\n.target sm_80\n.address_size 64\n' >"$folder/quantized.ptx"
        exit 0
        ;;
    object:*moe_*.cu | object:*/mmvq_*.cu | object:*/mmq_*.cu)
        : >"$output"
        exit 0
        ;;
    library:)
        case $output in
            */libmoe.a)
                # The names are those that the crate's Rust side declares.
                stubs=$output.c
                {
                    printf '#include <stdio.h>\n#include <stdlib.h>\n'
                    printf '#define STUB(f) void f(void) { fputs("emulated driver: " #f " is not supported: quantised kernels are not built\\n", stderr); abort(); }\n'
                    sed -n 's/^ *pub fn \([a-z0-9_A-Z]*\)(.*/STUB(\1)/p' src/ffi.rs
                } >"$stubs"
                cc -c -fPIC -o "$stubs.o" "$stubs"
                rm -f "$output"
                ar rcs "$output" "$stubs.o"
                exit 0
                ;;
        esac
        ;;
esac
exec "$real" "$@"
