#!/usr/bin/env bash
# The swap with eight envs, make_vec_env(..., n_envs=8), and SB3's default arguments: 16,384 samples in an update of PPO. Beside
# it groups whose rollouts may get as short as 32 executed steps in each env. Adds the runs that are missing to this folder.
#
#   pip install -c constraints.txt -e ".[compare]" && benchmarks/several_envs/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD"

for env in Inventory Queue GustyCartPoleSwingUp; do
    python -m sb3_hybrid_grpo compare --env "hybrid_grpo/$env-v0" --algorithms ppo hybrid hybrid,adapt_rollouts:32 --n-envs 8 \
        --update-sizes 16384 --batch-sizes 64 --hyperparams learning_rate:0.0003 gamma:0.99 --seeds 5 --budget 524288 \
        --evaluations 16 --episodes 20 --no-normalize --output benchmarks/several_envs
done
python -m sb3_hybrid_grpo compare report benchmarks/several_envs
