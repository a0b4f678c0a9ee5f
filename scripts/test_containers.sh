#!/usr/bin/env bash
# What `make test-containers` does: an engine, images to build on, the tests on them, and the engine stopped where this started it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

was_there=''
! scripts/docker_engine.sh check || was_there=1
# However this ends: containers of a test that was killed would start again with the engine.
clean_up() {
    eval "$(scripts/docker_engine.sh env)"
    if scripts/docker_engine.sh check; then
        docker compose --project-name miniplm-test down --volumes --remove-orphans >/dev/null 2>&1 || echo "test-containers: containers of the project miniplm-test are left" >&2
    fi
    [[ $was_there ]] || scripts/docker_engine.sh stop
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

scripts/docker_engine.sh start
scripts/install_test_packages.sh chromium
# In a folder of its own: where it is installed every Prefect server and worker imports it, which takes them a second.
kubernetes=.cache/kubernetes
log=.cache/docker/kubernetes.log
[[ -d $kubernetes/prefect_kubernetes ]] || .venv/bin/python -m pip install --disable-pip-version-check --no-deps --target "$kubernetes" \
    --constraint constraints.txt prefect-kubernetes kubernetes-asyncio kopf pyOpenSSL tenacity iso8601 >"$log" 2>&1 \
    || { tail -n 20 "$log" >&2; echo "test-containers: pip could not install prefect-kubernetes" >&2; exit 1; }
scripts/base_images.sh
PYTHONPATH=$kubernetes .venv/bin/python -m pytest tests/containers -q -n0 --durations=5 "$@"
