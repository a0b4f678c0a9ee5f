#!/usr/bin/env bash
# What `make test-containers` does: an engine, images to build on, the tests on them, and the engine stopped where this started it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'scripts/docker_engine.sh stop' EXIT
scripts/docker_engine.sh start
scripts/base_images.sh
# In a folder of its own: where it is installed every Prefect server and worker imports it, which takes them a second.
kubernetes=.cache/kubernetes
[[ -d $kubernetes/prefect_kubernetes ]] || .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$kubernetes" \
    --constraint constraints.txt prefect-kubernetes kubernetes-asyncio kopf pyOpenSSL tenacity iso8601
PYTHONPATH=$kubernetes .venv/bin/python -m pytest tests/containers -q -n0 --durations=5 "$@"
