#!/usr/bin/env bash
# What a fleet's Prefect server has to know, once it answers: work pools, queues, deployments, automations. Run by the service
# `setup` of compose.yaml and by deployments/local-fleet.sh, from the root of a checkout; running it again changes nothing that is there. MINIPLM_NOTIFY names the block that sends notifications.
set -euo pipefail

for pool in miniplm-cpu miniplm-gpu; do
    prefect work-pool inspect "$pool" >/dev/null 2>&1 || prefect work-pool create "$pool" --type process
done
# So many parents at a time. The pool counts them, not its worker: gpu-workers.sh --help says why.
prefect work-pool set-concurrency-limit miniplm-cpu "${MINIPLM_PARENTS:-8}"
# A lower number goes first: scoring waits for the reference model, and a student's training for nothing.
for queue in "training 1" "scoring 2"; do
    read -r name priority <<<"$queue"
    prefect work-queue inspect "$name" --pool miniplm-gpu >/dev/null 2>&1 \
        || prefect work-queue create "$name" --pool miniplm-gpu --priority "$priority"
done
prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all
python deployments/apply_automations.py ${MINIPLM_NOTIFY:+--notify "$MINIPLM_NOTIFY"}
