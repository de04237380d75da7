#!/usr/bin/env bash
# The swap with eight envs, make_vec_env(..., n_envs=8), and SB3's default arguments: 16,384 samples in an update of PPO. Beside
# it groups whose rollouts may get as short as 32 executed steps in each env. Adds the runs that are missing to this folder, and
# to with_normalization for Queue in VecNormalize.
#
#   pip install -c constraints.txt -e ".[compare]" && benchmarks/several_envs/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD"

# swap <env> <--normalize or --no-normalize> <folder>
swap() {
    python -m sb3_hybrid_grpo compare --env "hybrid_grpo/$1-v0" --algorithms ppo hybrid hybrid,adapt_rollouts:32 --n-envs 8 \
        --update-sizes 16384 --batch-sizes 64 --hyperparams learning_rate:0.0003 gamma:0.99 --seeds 5 --budget 524288 \
        --evaluations 16 --episodes 20 "$2" --output "$3"
}

for env in Inventory Queue GustyCartPoleSwingUp; do
    swap "$env" --no-normalize benchmarks/several_envs
done
swap Queue --normalize benchmarks/several_envs/with_normalization
python -m sb3_hybrid_grpo compare report benchmarks/several_envs
python -m sb3_hybrid_grpo compare report benchmarks/several_envs/with_normalization
