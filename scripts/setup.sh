#!/usr/bin/env bash
# Makes .venv with MiniPLM (editable), its demo, dev and eval extras and every dependency pinned in constraints.txt, and .venv/readers
# with what tests open exports with (readers.txt).
# Does nothing when that has been done for these very files in this very folder. PYTHON=... names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LOG=.cache/setup.log
STAMP=.venv/miniplm-setup
INSTALLING=.venv/miniplm-installing
UV=uv==0.13.9 # not in constraints.txt: MiniPLM does not depend on it
PIP_OPTIONS=(--no-input --disable-pip-version-check --progress-bar off)
WANTED=(--constraint constraints.txt --editable '.[demo,dev,eval]')
READERS=(--no-deps --only-binary :all: --target .venv/readers --requirement scripts/readers.txt)

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# The first interpreter that is new enough.
find_python() {
    local candidate found=()
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        found+=("$candidate is $("$candidate" --version 2>&1)")
    done
    fail "MiniPLM needs Python 3.11 or newer; ${found[*]:-there is no ${PYTHON:-python3} on PATH}." \
        "Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or name it: make setup PYTHON=/path/to/python3.12"
}

# Waits for a process in the background, with one line that a person can read; on a terminal it is rewritten in place.
wait_for() {
    local pid=$1 started=$SECONDS shown=0 seconds last
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        seconds=$((SECONDS - started))
        last=$(tail -n 1 "$LOG" | cut -c 1-100)
        if [[ -t 1 ]]; then
            printf '\r\033[K  %3d s  %s' "$seconds" "$last"
        elif ((seconds - shown >= 20)); then
            shown=$seconds
            printf '  %3d s  %s\n' "$seconds" "$last"
        fi
    done
    [[ -t 1 ]] && printf '\r\033[K'
    wait "$pid"
}

# What pip is told of an option, by its files or the environment: uv reads neither.
read_pip_option() {
    .venv/bin/python -m pip config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | tail -n 1 | sed 's/\\n/ /g'
}

# uv takes a quarter of pip's time. It goes where pip goes for packages: to its index, its folders of files, by its certificates.
install_by_uv() {
    local options=(--python .venv/bin/python --index-strategy unsafe-best-match) option value
    .venv/bin/python -m pip install "${PIP_OPTIONS[@]}" "$UV" >>"$LOG" 2>&1 || return
    for option in find-links index-url extra-index-url; do
        for value in $(read_pip_option "$option"); do
            options+=("--$option" "$value")
        done
    done
    [[ $(read_pip_option no-index) != true ]] || options+=(--no-index)
    value=$(read_pip_option cert)
    [[ -z $value ]] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$value}
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
    exec .venv/bin/uv pip install "${options[@]}" "$@" >>"$LOG" 2>&1
}

install_by_pip() {
    exec .venv/bin/python -m pip install "${PIP_OPTIONS[@]}" "$@" >>"$LOG" 2>&1
}

# A way to install, in the background; waits for it.
install() {
    local status=0
    "$@" 9>&- &
    installer=$!
    wait_for "$installer" || status=$?
    return "$status"
}

mkdir -p .cache
if command -v flock >/dev/null; then
    # Two calls at once in one checkout: the second waits, and then finds the work done.
    exec 9>.cache/setup.lock
    flock 9
fi

fingerprint="$(cat pyproject.toml constraints.txt scripts/readers.txt | cksum) $PWD"
if [[ -x .venv/bin/python && -f $STAMP && $(cat "$STAMP") == "$fingerprint" ]]; then
    exit 0
fi

python=$(find_python)
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail \
    "$python has no venv module, which .venv is made with." \
    "Install it (Debian, Ubuntu: apt-get install python3-venv) and run make setup again."

# What was killed can leave half a package that is later taken for installed: such a .venv is made anew.
if [[ -e $INSTALLING ]] || ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv >"$LOG" 2>&1 || { cat "$LOG" >&2; fail "could not make .venv (see above)"; }
fi
rm -f "$STAMP"
touch "$INSTALLING"

echo "setup: installing MiniPLM and its pinned dependencies into .venv (about a minute; log: $LOG)"
trap 'kill "${installer:-}" 2>/dev/null || true' INT TERM
: >"$LOG"
by=install_by_uv status=0
install "$by" --compile-bytecode "${WANTED[@]}" || status=$?
if ((status > 0 && status < 128)); then
    echo "setup: uv could not do it (see $LOG); pip does it, which takes some minutes"
    # In a new .venv, as uv leaves in place what it has begun to install.
    "$python" -m venv --clear .venv >>"$LOG" 2>&1
    touch "$INSTALLING"
    by=install_by_pip status=0
    install "$by" "${WANTED[@]}" || status=$?
fi
if ((status < 128)); then
    rm -f "$INSTALLING" # it ended by itself: what it could not finish is taken back, or installed again the next time
fi
if ((status)); then
    tail -n 40 "$LOG" >&2
    fail "the dependencies could not be installed; the last lines are above, the whole log is $LOG."
fi
[[ -x .venv/bin/miniplm ]] || fail "all is installed, but .venv/bin/miniplm is not there; see $LOG"
rm -rf .venv/readers
install "$by" "${READERS[@]}" || status=$?
if ((status)); then
    rm -rf .venv/readers
    ((status < 128)) || fail "it was stopped; run it again."
    echo "setup: other people's readers of exports could not be installed (see $LOG); the tests that need them will be skipped"
fi
printf '%s' "$fingerprint" >"$STAMP"
echo "setup: done in $SECONDS s; the command is .venv/bin/miniplm"
