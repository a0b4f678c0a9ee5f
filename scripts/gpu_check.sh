#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU, no network needed: gpu_check.sh [STAGE ...] [--rehearse] [--output FOLDER].
# Python packages that the machine lacks are taken from .gpu-wheels/ where that is there (`make gpu-wheels` fills it). PYTHON=... names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
if compgen -G '.gpu-wheels/*.whl' >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .gpu-wheels/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
# Products repeat their last bits only with a workspace that cuBLAS is told of before it starts.
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
"$python" -m benchmarks.gpu_check "$@"
