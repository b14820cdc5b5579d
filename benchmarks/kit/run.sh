#!/usr/bin/env bash
# Shows on this machine's GPU what only a GPU can show: bash run.sh RESULTS_DIR [--rehearse] [--minutes N]
# Needs no network, no package index and no environment of its own: the machine's Python with torch for CUDA.
set -euo pipefail
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: '$python' is missing or older than Python 3.11. The kit runs in the Python that has torch. Name it:" \
        "PYTHON=/path/to/python3 bash run.sh ..." >&2
    exit 2
}
case $kit in *:*)
    echo "error: the kit lies in '$kit'. Python cannot import from a folder with a colon in its name. Move it elsewhere." >&2
    exit 2
    ;;
esac
# The results folder is meant from where the caller stands; the modules are found from the kit.
exec env PYTHONPATH="$kit:$kit/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    MADTP_GOLDEN="$kit/golden" MADTP_KERNELS="$kit/lib/libmadtp_kernels.so" MADTP_NATIVE="$kit/lib" \
    "$python" -P -m benchmarks.kit.run "$@"  # -P: modules of the folder where the caller stands are not ours
