#!/usr/bin/env bash
# Fetches into .gpu-wheels/ what MiniPLM needs and a machine with PyTorch and transformers may lack, for a machine without a
# network: gpu_check.sh installs from there. GPU_PYTHON=3.12 names that machine's Python (default 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${GPU_PYTHON:-3.12}
packages=(pydantic pydantic_core annotated-types typing-inspection typing_extensions zstandard tensorboardX liger-kernel)
pins=()
for package in "${packages[@]}"; do
    pins+=("$(grep -iE "^${package//-/[-_]}==" constraints.txt || echo "$package")")
done
mkdir -p .gpu-wheels
rm -f .gpu-wheels/*.whl
.venv/bin/python -m pip download -q --no-deps --only-binary=:all: -d .gpu-wheels --python-version "$python" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform any "${pins[@]}"
ls -sh .gpu-wheels
