#!/usr/bin/env bash
# Makes .venv with MiniPLM (editable), its demo, dev and eval extras and every dependency pinned in constraints.txt.
# Does nothing when that has been done for these very files in this very folder. PYTHON=... names another interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LOG=.cache/setup.log
STAMP=.venv/miniplm-setup
INSTALLING=.venv/miniplm-installing

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

# One line that a person can read while pip works; on a terminal it is rewritten in place.
show_progress() {
    local pid=$1 started=$SECONDS shown=0 seconds last
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        seconds=$((SECONDS - started))
        # `|| true`: grep finds nothing before pip has said anything
        last=$(grep -oE '^ *(Collecting|Downloading|Using cached|Building|Installing) [^ ]+( [a-z]+)?' "$LOG" | tail -n 1 | sed 's/^ *//' || true)
        if [[ -t 1 ]]; then
            printf '\r\033[K  %3d s  %s' "$seconds" "${last:-starting pip}"
        elif ((seconds - shown >= 20)); then
            shown=$seconds
            printf '  %3d s  %s\n' "$seconds" "${last:-starting pip}"
        fi
    done
    [[ -t 1 ]] && printf '\r\033[K'
    return 0
}

mkdir -p .cache
if command -v flock >/dev/null; then
    # Two calls at once in one checkout: the second waits, and then finds the work done.
    exec 9>.cache/setup.lock
    flock 9
fi

fingerprint="$(cat pyproject.toml constraints.txt | cksum) $PWD"
if [[ -x .venv/bin/python && -f $STAMP && $(cat "$STAMP") == "$fingerprint" ]]; then
    exit 0
fi

python=$(find_python)
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail \
    "$python has no venv module, which .venv is made with." \
    "Install it (Debian, Ubuntu: apt-get install python3-venv) and run make setup again."

# A killed pip can leave half a package that it later takes for installed: such a .venv is made anew.
if [[ -e $INSTALLING ]] || ! .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv >"$LOG" 2>&1 || { cat "$LOG" >&2; fail "could not make .venv (see above)"; }
fi
rm -f "$STAMP"
touch "$INSTALLING"

echo "setup: installing MiniPLM and its pinned dependencies into .venv (about 3 minutes; log: $LOG)"
.venv/bin/python -m pip install --no-input --disable-pip-version-check --progress-bar off \
    --constraint constraints.txt --editable '.[demo,dev,eval]' >"$LOG" 2>&1 9>&- &
pip_pid=$!
trap 'kill "$pip_pid" 2>/dev/null || true' INT TERM
show_progress "$pip_pid"
pip_status=0
wait "$pip_pid" || pip_status=$?
if ((pip_status < 128)); then
    rm -f "$INSTALLING" # pip ended by itself: it takes back what it could not finish
fi
if ((pip_status)); then
    tail -n 40 "$LOG" >&2
    fail "pip could not install the dependencies; its last lines are above, the whole log is $LOG."
fi
[[ -x .venv/bin/miniplm ]] || fail "pip finished, but .venv/bin/miniplm is not there; see $LOG"
printf '%s' "$fingerprint" >"$STAMP"
echo "setup: done in $SECONDS s; the command is .venv/bin/miniplm"
