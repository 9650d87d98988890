#!/usr/bin/env bash
# The first hour on a GPU: what training on CUDA should show, checked in order, in three calls of ten minutes.
#
#     benchmarks/gpu_first_hour.sh 1        versions, short runs on the CPU and on the GPU, strategies, attention
#     benchmarks/gpu_first_hour.sh 2        speed, memory and profile of a step of csm_1b
#     benchmarks/gpu_first_hour.sh 3        training of csm_1b, determinism, tests, generation
#     benchmarks/gpu_first_hour.sh --device cpu 1 2 3         the same checks with tiny models, without a GPU
#
# It stops at the first surprise and says what was expected. A call that is out of time is repeated: checks that have passed
# are not run again. The tables for docs are in runs/gpu_first_hour/benchmarks_gpu.md, the logs next to them.
# Needs the project's dependencies; pytest is only for the tests of part 3. PYTHON=... names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
export WANDB_MODE=disabled HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD"
exec "${PYTHON:-python}" benchmarks/gpu_first_hour.py "$@"
