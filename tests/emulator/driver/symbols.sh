#!/bin/sh
# symbols.sh: writes symbols.txt, the names of all that cudarc, as Cargo.lock has it, declares of the libraries that Candle links.
set -eu
cd "$(dirname "$0")"
manifest=$(cargo metadata --format-version 1 --features candle-core/cuda --manifest-path ../../../Cargo.toml |
    grep -o '"manifest_path":"[^"]*/cudarc-[0-9.]*/Cargo.toml"' | head -n 1 | cut -d '"' -f 4)
if [ -z "$manifest" ]; then
    echo "symbols.sh: cargo metadata names no cudarc" >&2
    exit 1
fi
for library in driver cublas cublaslt curand nvrtc; do
    echo "# $library"
    grep -A 1 'extern "C" {' "$(dirname "$manifest")/src/$library/sys/mod.rs" | sed -n 's/^ *fn \([A-Za-z0-9_]*\)(.*/\1/p' | LC_ALL=C sort -u
done >symbols.new
mv symbols.new symbols.txt
