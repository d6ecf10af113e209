#!/usr/bin/env bash
# The GPU day: one script that settles, within nine minutes and offline, what only a GPU can tell. docs/gpu.md explains it.
#   at home:      make gpu-day-prepare                          fills .gpu_day/, which travels with the checkout
#   on the GPU:   bash benchmarks/gpu_day/gpu_day.sh            results go to the folder that OUT names (default: gpu_day_out)
#   a rehearsal:  make gpu-day-rehearsal                        every stage at tiny sizes on a CPU
#   some stages:  bash benchmarks/gpu_day/gpu_day.sh card step  their names are in runner.py
set -euo pipefail
cd "$(dirname "$0")/../.."
export OUT=${OUT:-$PWD/gpu_day_out} PYTHONPATH=$PWD:$PWD/benchmarks PYTHONUNBUFFERED=1
mkdir -p "$OUT"
python3 -m gpu_day.runner "$@" 2>&1 | tee "$OUT/log.txt"
