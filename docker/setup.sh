#!/usr/bin/env bash
# What a fleet's Prefect server has to know, once it answers: work pools, deployments, automations. Run by the service `setup`
# of compose.yaml; running it again changes nothing that is there. MINIPLM_NOTIFY names the block that sends notifications.
set -euo pipefail

for pool in miniplm-cpu miniplm-gpu; do
    prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect work-pool create "$pool" --type process
done
prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all
python deployments/apply_automations.py ${MINIPLM_NOTIFY:+--notify "$MINIPLM_NOTIFY"}
