#!/usr/bin/env bash
# The swap, SB3's default arguments without VecNormalize, where the noise of an episode is drawn in reset: as if it were recorded.
# Adds the runs that are missing to this folder.
#
#   pip install -c constraints.txt -e ".[compare]" && benchmarks/drawn_ahead/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD:$PWD/benchmarks/drawn_ahead"

swap() {
    python -m sb3_hybrid_grpo compare --env "drawn_ahead:drawn_ahead/$1-v0" --algorithms ppo hybrid --n-envs 1 \
        --update-sizes 2048 --batch-sizes 64 --hyperparams learning_rate:0.0003 gamma:0.99 --seeds "$3" --budget "$2" \
        --evaluations 8 --episodes 20 --no-normalize --output benchmarks/drawn_ahead
}

swap Inventory 65536 10
swap GustyCartPoleSwingUp 131072 5
python -m sb3_hybrid_grpo compare report benchmarks/drawn_ahead
