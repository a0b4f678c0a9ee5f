#!/usr/bin/env bash
# A fleet on two machines whose link is cut: two network namespaces, by hand as root (about 10 minutes).
#
#     tests/containers/two_machines.sh
#
# One has the Prefect server, PostgreSQL, S3, a CPU worker and a scoring one, the other a scoring worker alone. The tests run in the first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[[ $(id -u) -eq 0 ]] || { echo "two_machines: network namespaces are made by root" >&2; exit 2; }

export MINIPLM_HUB=miniplm-hub-$$ MINIPLM_EDGE=miniplm-edge-$$
trap 'ip netns delete "$MINIPLM_HUB"; ip netns delete "$MINIPLM_EDGE"' EXIT
ip netns add "$MINIPLM_HUB"
ip netns add "$MINIPLM_EDGE"
ip link add hub netns "$MINIPLM_HUB" type veth peer name edge netns "$MINIPLM_EDGE"
for side in "$MINIPLM_HUB hub 10.77.0.1" "$MINIPLM_EDGE edge 10.77.0.2"; do
    read -r name link address <<<"$side"
    ip -n "$name" address add "$address/24" dev "$link"
    ip -n "$name" link set lo up
    ip -n "$name" link set "$link" up
done
ip netns exec "$MINIPLM_HUB" .venv/bin/python -m pytest tests/containers/test_two_machines.py -q -n0 --durations=5 "$@"
