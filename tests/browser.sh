#!/usr/bin/env bash
# Debian's Chromium (apt), if it is missing: tests/test_jupyterlab.py opens the notebooks in it.
set -euo pipefail
command -v chromium >/dev/null && exit
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends chromium >/dev/null
