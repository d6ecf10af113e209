#!/usr/bin/env bash
# What the tests in a browser need, if it is missing: Debian's Chromium (apt), in which they open notebooks and pages,
# and axe-core (npm, in a cache outside of the repository), which looks for what keeps people out of a page.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
AXE=4.14.1  # tests/accessibility.py reads it
programs=()
command -v chromium >/dev/null || programs+=(chromium)
command -v npm >/dev/null || programs+=(npm)
if [ ${#programs[@]} -gt 0 ]; then
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "${programs[@]}" >/dev/null
fi
cache="${XDG_CACHE_HOME:-$HOME/.cache}/egokit-tests/axe-core-$AXE"
if [ ! -f "$cache/axe.min.js" ]; then
    packed="$(mktemp -d)"
    trap 'rm -rf "$packed"' EXIT
    (cd "$packed" && npm pack --silent "axe-core@$AXE" >/dev/null && tar xzf axe-core-*.tgz)
    mkdir -p "$(dirname "$cache")"
    rm -rf "$cache"
    mv "$packed/package" "$cache"
fi
