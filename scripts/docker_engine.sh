#!/usr/bin/env bash
# A Docker engine for `make test-containers`: scripts/docker_engine.sh start | stop | check | env
#
# start: where an engine answers and the client has Compose and buildx, nothing happens. Else on Debian as root: the engine from the
# package docker.io, Compose and buildx from a newer release of Debian (bookworm has no Compose 2), unpacked below .cache/docker and
# not installed, and dockerd started in the background. Its images stay in /var/lib/docker for the next time.
# stop: ends the dockerd that `start` started, and no other. check: whether an engine answers with what is needed, within a minute.
# env: what a shell needs to use it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

FOLDER=$PWD/.cache/docker
PID_FILE=$FOLDER/dockerd.pid
LOG=$FOLDER/engine.log
NEWER=trixie

fail() {
    printf 'docker-engine: %s\n' "$@" >&2
    exit 1
}

# Plugins are looked for beside the client's configuration. One that was unpacked here is used only where there is no other.
plugins=$FOLDER/client/cli-plugins
[[ -e $plugins/docker-compose ]] && export DOCKER_CONFIG=$FOLDER/client

# Of an engine that is there and hangs, a client waits for ever; and asked to end by a signal it waits for its answer.
ask() { timeout --kill-after=5 15 docker "$@" >/dev/null 2>&1; }
answers() { ask version; }
has_plugins() { ask compose version && ask buildx version; }

install_engine() {
    command -v dockerd >/dev/null && command -v docker >/dev/null && return
    echo "docker-engine: installing docker.io with apt-get (log: $LOG)"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends docker.io iptables; } >>"$LOG" 2>&1 \
        || { tail -n 20 "$LOG" >&2; fail "apt-get could not install docker.io"; }
}

install_plugins() {
    echo "docker-engine: fetching Compose and buildx from Debian $NEWER"
    local apt=$FOLDER/apt options
    mkdir -p "$apt/lists/partial" "$plugins"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $NEWER main" >"$apt/sources.list"
    options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=" -o APT::Sandbox::User=root)
    {
        apt-get "${options[@]}" update
        (cd "$apt" && apt-get "${options[@]}" download docker-compose docker-buildx)
        for package in "$apt"/*.deb; do dpkg-deb --extract "$package" "$apt/unpacked"; done
    } >>"$LOG" 2>&1 || { tail -n 20 "$LOG" >&2; fail "Compose and buildx could not be had from Debian $NEWER"; }
    find "$apt/unpacked" -path '*cli-plugins/docker-*' -type f -exec cp {} "$plugins/" \;
    rm -rf "$apt"
    export DOCKER_CONFIG=$FOLDER/client
}

start() {
    mkdir -p "$FOLDER"
    answers && has_plugins && return
    if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
        fail "no Docker engine answers, or the client lacks Compose or buildx; install them and start the engine (this script does it on Debian as root)"
    fi
    answers || install_engine
    has_plugins || install_plugins
    if ! answers; then
        # setsid: Ctrl-C in the tests must not end the engine before they have stopped what runs on it.
        setsid dockerd --pidfile "$PID_FILE" >>"$LOG" 2>&1 </dev/null &
        for _ in $(seq 60); do
            answers && break
            sleep 0.5
        done
    fi
    answers || { tail -n 20 "$LOG" >&2; fail "dockerd does not answer; its log is $LOG"; }
    has_plugins || fail "the plugins in $plugins do not work"
}

stop() {
    local pid
    pid=$(cat "$PID_FILE" 2>/dev/null) || return 0
    kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.2
    done
    rm -f "$PID_FILE"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    check) answers && has_plugins ;;
    env) [[ -z ${DOCKER_CONFIG:-} ]] || printf 'export DOCKER_CONFIG=%q\n' "$DOCKER_CONFIG" ;;
    *) fail "give start, stop, check or env" ;;
esac
