#!/usr/bin/env bash
# What a fleet's Prefect server has to know, once it answers: work pools, queues, deployments, automations. Run by the service
# `setup` of compose.yaml and by deployments/local-fleet.sh, from the root of a checkout; running it again changes nothing that is there. MINIPLM_NOTIFY names the block that sends notifications.
# MINIPLM_BUCKET names a bucket that is made where there is none, unless MINIPLM_BUCKET_ELSEWHERE says that it is somebody else's.
set -euo pipefail

if [[ -n ${MINIPLM_BUCKET:-} && -z ${MINIPLM_BUCKET_ELSEWHERE:-} ]]; then
    python - "$MINIPLM_BUCKET" <<'PYTHON'
import sys

from s3fs import S3FileSystem

filesystem, bucket = S3FileSystem(), sys.argv[1]
if not filesystem.exists(bucket):
    filesystem.mkdir(bucket)
PYTHON
fi

# One process for all pools and queues: each start of the command line takes seconds.
python - <<'PYTHON'
import os

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

with get_client(sync_client=True) as client:
    for pool in ("miniplm-cpu", "miniplm-gpu"):
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
    # So many parents at a time. The pool counts them, not its worker: gpu-workers.sh --help says why.
    client.update_work_pool("miniplm-cpu", WorkPoolUpdate(concurrency_limit=int(os.environ.get("MINIPLM_PARENTS") or 8)))
    # A lower number goes first: scoring waits for the reference model, and a student's training for nothing.
    for queue, priority in (("training", 1), ("scoring", 2)):
        try:
            client.read_work_queue_by_name(queue, work_pool_name="miniplm-gpu")
        except ObjectNotFound:
            client.create_work_queue(queue, work_pool_name="miniplm-gpu", priority=priority)
PYTHON
prefect --no-prompt deploy --prefect-file deployments/prefect.yaml --all
python deployments/apply_automations.py ${MINIPLM_NOTIFY:+--notify "$MINIPLM_NOTIFY"}
