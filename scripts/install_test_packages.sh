#!/usr/bin/env bash
# Makes sure that the tests find a Chromium: one of them opens report.html in it. On Debian or Ubuntu as root it is
# installed with apt-get; elsewhere this says what to install, and that test is skipped and says so. Does nothing twice.
set -euo pipefail

for browser in chromium chromium-browser google-chrome; do
    command -v "$browser" >/dev/null && exit 0
done

if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "test-packages: no Chromium on PATH, so the test that opens report.html in a browser will be skipped."
    echo "test-packages: to run it too, install one first (Debian: apt-get install chromium; Fedora: dnf install chromium)."
    exit 0
fi

mkdir -p "$(dirname "${BASH_SOURCE[0]}")/../.cache"
log="$(dirname "${BASH_SOURCE[0]}")/../.cache/test-packages.log"
echo "test-packages: installing Chromium with apt-get, for the test that opens report.html (about a minute; log: .cache/test-packages.log)"
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends chromium; } >"$log" 2>&1; then
    tail -n 20 "$log"
    echo "test-packages: apt-get could not install Chromium (see above); the test that opens report.html will be skipped."
fi
