#!/usr/bin/env bash
# Makes sure that the tests find a Chromium, in which one of them opens report.html, and PostgreSQL, which keeps the database of the
# fleet that others start. On Debian or Ubuntu as root both are installed with apt-get; elsewhere this says what to install, and
# those tests are skipped and say so. Does nothing twice. Given one of the two by name it looks for no other.
set -euo pipefail

wanted=${*:-chromium postgresql}
missing=()
if [[ $wanted == *chromium* ]]; then
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
fi
if [[ $wanted == *postgresql* ]]; then
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
fi
((${#missing[@]})) || exit 0

if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "test-packages: not there: ${missing[*]}. The tests that need them will be skipped."
    echo "test-packages: to run them too, install them first (Debian, Ubuntu: apt-get install ${missing[*]})."
    exit 0
fi

mkdir -p "$(dirname "${BASH_SOURCE[0]}")/../.cache"
log="$(dirname "${BASH_SOURCE[0]}")/../.cache/test-packages.log"
echo "test-packages: installing ${missing[*]} with apt-get, for the tests (about a minute; log: .cache/test-packages.log)"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log"
    echo "test-packages: apt-get could not install ${missing[*]} (see above); the tests that need them will be skipped."
fi
