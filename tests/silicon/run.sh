#!/bin/sh
# run.sh [--out FOLDER] [--reduced] [--seconds N] [--only NAME,…] [--work FOLDER]: measures this machine's GPU and writes report.md and report.json
# into FOLDER (here if not said), in at most nine minutes. Needs a driver, cuBLAS and cuRAND: of the system, of a CUDA toolkit, or of python's packages.
# Changes no setting of the device.
#
# Parts, in their order: device ceilings load check suites sanitizer times torch ncu graph large.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# Where CUDA's libraries may be, a folder a line, the first ones first.
folders() {
    printf '%s\n' "${LD_LIBRARY_PATH:-}" | tr ':' '\n'
    for ldconfig in ldconfig /sbin/ldconfig; do
        if command -v "$ldconfig" >/dev/null 2>&1; then
            "$ldconfig" -p 2>/dev/null | sed -n 's|.*x86-64.* => \(/.*\)/lib\(cuda\|cublas\|curand\|nvrtc\|cudart\).*|\1|p'
            break
        fi
    done
    printf '%s\n' /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib/wsl/lib
    for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /usr/local/cuda-* /opt/cuda; do
        [ -z "$home" ] || printf '%s\n' "$home/lib64" "$home/targets/x86_64-linux/lib" "$home/lib"
    done
    # Python's packages nvidia-cublas, nvidia-curand and the like, as PyTorch brings them.
    for python in python3 python; do
        if command -v "$python" >/dev/null 2>&1; then
            "$python" -c 'import sys; print("\n".join(path for path in sys.path if path))' 2>/dev/null | while IFS= read -r path; do
                for folder in "$path"/nvidia/*/lib; do printf '%s\n' "$folder"; done
            done
        fi
    done
    for folder in /opt/*/lib/python3*/site-packages/nvidia/*/lib /opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib \
        /usr/local/lib/python3*/*-packages/nvidia/*/lib "${HOME:-/root}"/.local/lib/python3*/site-packages/nvidia/*/lib; do
        printf '%s\n' "$folder"
    done
    # A driver for containers whose host has an older one.
    for folder in /usr/local/cuda/compat /usr/local/cuda-*/compat; do printf '%s\n' "$folder"; done
}

links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
folders | awk 'NF && !seen[$0]++' | while IFS= read -r folder; do
    # Names that a pattern did not match, and the kit's own libcuda.so, are none.
    if [ -d "$folder" ] && [ "$folder" != "$here/lib" ]; then printf '%s\n' "$folder"; fi
done >"$links/folders"

# The file of one of the names: of the first name that is anywhere.
find_library() {
    for name in "$@"; do
        while IFS= read -r folder; do
            if [ -e "$folder/$name" ]; then
                printf '%s\n' "$folder/$name"
                return 0
            fi
        done <"$links/folders"
    done
    return 1
}

found=""
path=$here/lib
# A library's folder is one to look into, unless the loader does so anyhow: named, it would come before what a tool brings for itself.
look_beside() {
    place=$(dirname "$1")
    case $place in
        /lib/x86_64-linux-gnu | /usr/lib/x86_64-linux-gnu | /lib64 | /usr/lib64) return 0 ;;
    esac
    case ":$path:" in
        *":$place:"*) ;;
        *) path=$path:$place ;;
    esac
}

# The kit's libcuda.so asks for these names; where a machine has another version, a link has the name.
while IFS= read -r name; do
    plain=${name%%.so.*}.so
    others="$plain.13 $plain.12 $plain"
    [ "$plain" != libcuda.so ] || others="" # which may be a stub
    # shellcheck disable=SC2086
    if library=$(find_library "$name" $others); then
        found="$found$name: $library; "
        [ "$(basename "$library")" = "$name" ] || ln -s "$library" "$links/$name"
        look_beside "$library"
        # What cuBLAS asks for itself, of its own version; in python's packages that is elsewhere.
        if [ "$plain" = libcublas.so ]; then
            for beside in libcublasLt libcudart; do
                if beside=$(find_library "$beside.so.${library##*.so.}"); then
                    look_beside "$beside"
                    found="$found$(basename "$beside"): $beside; "
                fi
            done
        fi
    else
        found="$found$name: **not found**; "
        echo "run.sh: $name was found nowhere; looked into:" >&2
        cat "$links/folders" >&2
    fi
done <"$here/lib/wanted"

KIT_LIBRARIES=$found
KIT_LIBRARY_PATH=$links:$path
export KIT_LIBRARIES KIT_LIBRARY_PATH
"$here/kit" run --home "$here" "$@"
