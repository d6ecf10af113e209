#!/usr/bin/env bash
# At home, before a GPU is asked for: fills .gpu_day/, which git ignores, with what a bare GPU machine lacks.
#   make gpu-day-prepare, or
#   bash benchmarks/gpu_day/prepare.sh [--data-only]      with the project's Python first on PATH
# 42 MB in all: the wheels of what such a machine has been seen to lack (av, submitit, pydantic and its parts), and the
# tests' tiny data set, drawn and prepared here, as there is no ffmpeg there.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .gpu_day
if [ "${1:-}" != --data-only ]; then
  rm -rf .gpu_day/whl
  read -ra pins <<< "$(grep -E '^(av|submitit|pydantic|pydantic_core|annotated-types|typing-inspection)==' requirements.lock | tr '\n' ' ')"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --dest .gpu_day/whl "${pins[@]}"
fi
rm -rf .gpu_day/toy .gpu_day/home
mkdir -p .gpu_day/home/outputs
cp -r params .gpu_day/home/
EGOKIT_HOME=$PWD/.gpu_day/home PYTHONPATH=$PWD python3 - <<'P'
import os
from pathlib import Path

from egokit import prep, toy
from egokit.config.resolve import resolve

toy.make(Path(os.environ["EGOKIT_HOME"]) / "outputs/toy", size="tiny")
# toy=false: it is made above, at another size than the site would make it
prep.prepare(resolve("toy/pretrain", "toy", "site.toy=false"), progress=False)
P
mv .gpu_day/home/outputs/toy .gpu_day/toy
rm -rf .gpu_day/home
du -sh .gpu_day/*
