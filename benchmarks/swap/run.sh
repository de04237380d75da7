#!/usr/bin/env bash
# The class alone is swapped: SB3's default arguments for PPO and HybridGRPO. Adds the runs that are missing to this folder.
#
#   pip install -c constraints.txt -e ".[compare]" && benchmarks/swap/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1
python -m sb3_hybrid_grpo compare --env "${@:-hybrid_grpo/Inventory-v0}" --algorithms ppo hybrid --n-envs 1 --update-sizes 2048 \
    --batch-sizes 64 --hyperparams learning_rate:0.0003 gamma:0.99 --seeds 10 --budget 65536 --evaluations 8 --episodes 20 \
    --normalize --output benchmarks/swap
python -m sb3_hybrid_grpo compare report benchmarks/swap
