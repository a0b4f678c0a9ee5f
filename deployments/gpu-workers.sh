#!/usr/bin/env bash
# One Prefect worker for each GPU of this machine, in the foreground.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: deployments/gpu-workers.sh [OPTION]...

Starts one Prefect worker for each GPU of this machine and stays in the foreground. Each worker sees its GPU alone
(CUDA_VISIBLE_DEVICES) and takes one flow run at a time, so two runs never share a GPU. SIGTERM or Ctrl-C stops all of
them; runs they had are marked Crashed, so that whatever waits for them starts them elsewhere. When one ends by itself the others are stopped too, and this ends with exit code 1: what supervises it starts all
of them again. Where each GPU shall be supervised alone, use deployments/systemd/miniplm-gpu-worker@.service.

options
  --gpus LIST     all (default), numbers as nvidia-smi shows them (0,1,3), or none: one worker without a GPU
  --pool NAME     work pool to take runs from (default: miniplm-gpu)
  --queue NAME    its work queue (default: all queues of the pool)
  --name NAME     the workers are NAME-gpu0, NAME-gpu1, ... (default: this machine's host name); a single one is NAME
  --limit N       flow runs that a worker takes at a time (default: 1), or none: as many as the pool's own limit allows, for a
                  pool whose runs need no GPU. There a run may be started again the moment it died, on which Prefect 3.8's
                  worker with a limit of its own ends: it still counts the run that died
  --healthcheck   the first worker answers on http://PREFECT_WORKER_WEBSERVER_HOST:PREFECT_WORKER_WEBSERVER_PORT/health
  -h, --help      this text

environment
  PREFECT_API_URL           the Prefect server, such as http://fleet:4200/api (must be set)
  PREFECT_API_AUTH_STRING   USER:PASSWORD, where the server asks for them
  AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY     of the storage root, for s3://
These are set unless they are already: PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 (deployments/automations/stale-run.yaml
counts on it), PREFECT_WORKER_QUERY_SECONDS=2, PREFECT_WORKER_HEARTBEAT_SECONDS=10, PREFECT_LOGGING_EXTRA_LOGGERS=miniplm,
PREFECT_SERVER_ANALYTICS_ENABLED=false, DO_NOT_TRACK=1. NO_PROXY gets localhost,127.0.0.1,::1 added.

Exit codes: 0 stopped, 1 a worker ended by itself, 2 bad input.

example
  PREFECT_API_URL=http://fleet:4200/api PREFECT_API_AUTH_STRING=miniplm:... deployments/gpu-workers.sh --gpus 0,1
HELP
}

fail() {
    printf 'gpu-workers: %s\n' "$@" >&2
    exit 2
}

arguments=("$@")
pool=miniplm-gpu queue='' gpus=all name='' limit=1 healthcheck=''
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --healthcheck) healthcheck=1; shift ;;
        --pool | --queue | --gpus | --name | --limit)
            [[ -n ${2:-} ]] || fail "$1 wants a value; see --help"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        *) fail "there is no option $1; see --help" ;;
    esac
done
[[ $limit =~ ^([1-9][0-9]*|none)$ ]] || fail "--limit $limit: give a number from 1, or none"
[[ -n ${PREFECT_API_URL:-} ]] || fail "PREFECT_API_URL is not set, so a worker has no server to ask; see --help"

case $gpus in
    none) devices=('') ;;
    all)
        command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi, so the GPUs cannot be listed; name them: --gpus 0,1 (or none)"
        listed=$(nvidia-smi --query-gpu=index --format=csv,noheader) || fail "nvidia-smi failed: $listed"
        mapfile -t devices <<<"$listed"
        [[ -n ${devices[0]} ]] || fail "nvidia-smi lists no GPU; --gpus none starts one worker without"
        ;;
    *)
        [[ $gpus =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--gpus $gpus: give all, none, or numbers such as 0,1,3"
        IFS=, read -ra devices <<<"$gpus"
        repeated=$(printf '%s\n' "${devices[@]}" | sort | uniq -d)
        [[ -z $repeated ]] || fail "--gpus $gpus: ${repeated//$'\n'/, } is given twice; two workers would share a GPU"
        ;;
esac

# The checkout's own prefect, where this is a checkout.
bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin
command -v prefect >/dev/null || PATH=$bin:$PATH
command -v prefect >/dev/null || fail "there is no prefect on PATH nor in $bin; run make setup, or install the wheel"
# The workers start flow runs by `python` (deployments/prefect.yaml): the one beside prefect, whatever else is on PATH.
PATH=$(dirname "$(readlink -f "$(command -v prefect)")"):$PATH
export PATH

# A script that starts this one with & has SIGINT ignored here, and what bash finds ignored it cannot trap: so once more, by Python,
# which can undo it. SIGHUP stays as it is, as nohup means it.
ignored=$(sed -n 's/^SigIgn:[[:space:]]*//p' /proc/$$/status)
if (((16#$ignored & 2) && ${MINIPLM_SIGINT_RESTORED:-0} == 0)); then
    export MINIPLM_SIGINT_RESTORED=1
    exec python3 -c '
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' "$BASH" "${BASH_SOURCE[0]}" "${arguments[@]}"
fi

# Whatever proxy there is, a server on this machine is asked directly.
NO_PROXY=${no_proxy-${NO_PROXY-}}
if [[ ,$NO_PROXY, != *,\*,* ]]; then
    NO_PROXY=${NO_PROXY:+$NO_PROXY,}localhost,127.0.0.1,::1
fi
export NO_PROXY no_proxy=$NO_PROXY
export PREFECT_FLOWS_HEARTBEAT_FREQUENCY=${PREFECT_FLOWS_HEARTBEAT_FREQUENCY:-30}
export PREFECT_WORKER_QUERY_SECONDS=${PREFECT_WORKER_QUERY_SECONDS:-2}
export PREFECT_WORKER_HEARTBEAT_SECONDS=${PREFECT_WORKER_HEARTBEAT_SECONDS:-10}
export PREFECT_LOGGING_EXTRA_LOGGERS=${PREFECT_LOGGING_EXTRA_LOGGERS:-miniplm}
export PREFECT_SERVER_ANALYTICS_ENABLED=${PREFECT_SERVER_ANALYTICS_ENABLED:-false}
export DO_NOT_TRACK=${DO_NOT_TRACK:-1}
# The numbers of nvidia-smi, which sorts by bus; CUDA alone sorts the fastest first.
export CUDA_DEVICE_ORDER=PCI_BUS_ID

pids=() runs=()
stopping=''
# A worker that is stopped kills its run's process and tells nobody (Prefect 3.8.8): the run would count as Running until its
# silence is noticed. So the runs are noted first, by the environment that a worker gives their processes, and told afterwards.
note_runs() {
    local pid child children run
    for pid in "${pids[@]}"; do
        children=$(cat /proc/"$pid"/task/*/children 2>/dev/null || true)
        for child in $children; do
            run=$(tr '\0' '\n' 2>/dev/null </proc/"$child"/environ | sed -n 's/^PREFECT__FLOW_RUN_ID=//p' || true)
            [[ -z $run ]] || runs+=("$run")
        done
    done
}
set_crashed() {
    timeout 20 prefect api POST "/flow_runs/$1/set_state" --data '{"state": {"type": "CRASHED", "message": "Its worker was stopped."}}' >/dev/null 2>&1
}
# Those in the process of the run, which ended with it (flows/work_pool/subflows.py).
list_subflows() {
    local live='["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]'
    timeout 20 prefect api POST /flow_runs/filter 2>/dev/null --data \
        "{\"flow_runs\": {\"tags\": {\"all_\": [\"process:$1\"]}, \"deployment_id\": {\"is_null_\": true}, \"state\": {\"type\": {\"any_\": $live}}}}" \
        | python3 -c 'import json, sys; print(*(run["id"] for run in json.loads(sys.stdin.read() or "[]")))' 2>/dev/null || true
}
tell_run() {
    local subflow
    # A run that has ended in the meantime stays as it is: the server refuses.
    set_crashed "$1" || echo "gpu-workers: the server could not be told that run $1 is stopped; it will find it silent" >&2
    for subflow in $(list_subflows "$1"); do set_crashed "$subflow" & done
    wait
}
tell_runs() {
    local run
    for run in "${runs[@]}"; do tell_run "$run" & done
    wait
}
stop() {
    stopping=1
    note_runs
    # "No such process" is one that has ended already.
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
}
trap stop TERM INT HUP

start_worker() {
    local device=$1 worker
    worker=${name:-$HOSTNAME}-${device:+gpu}${device:-cpu}
    [[ -z $name || ${#devices[@]} -gt 1 ]] || worker=$name
    local command=(prefect worker start --pool "$pool" --type process --name "$worker")
    [[ $limit != none ]] && command+=(--limit "$limit")
    [[ -z $queue ]] || command+=(--work-queue "$queue")
    [[ -z $healthcheck ]] || command+=(--with-healthcheck)
    healthcheck=''
    # A process that bash starts with & ignores SIGINT, and an ignored signal stays ignored across exec. Python undoes that, and
    # gives the worker a session of its own: Ctrl-C then reaches this script alone, which stops each worker once.
    CUDA_VISIBLE_DEVICES=$device python3 -c '
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.setsid()
os.execvp(sys.argv[1], sys.argv[1:])' "${command[@]}" &
    pids+=($!)
    printf 'gpu-workers: %s, pid %s, pool %s\n' "$worker" "$!" "$pool"
}

for device in "${devices[@]}"; do
    [[ -n $stopping ]] || start_worker "${device// /}"
done

# Ends when a worker ends or a trapped signal comes.
wait -n "${pids[@]}" || true
if [[ -z $stopping ]]; then
    echo "gpu-workers: a worker ended by itself; stopping the others" >&2
    ended=1
    stop
fi
for pid in "${pids[@]}"; do
    # A further signal interrupts wait, so again until the process is gone.
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
done
tell_runs
exit "${ended:-0}"
