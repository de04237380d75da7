#!/usr/bin/env bash
# How often siblings fork, how short grouped rollouts may become, and larger minibatches. Adds the runs that are missing to this
# folder.
#
#   pip install -c constraints.txt -e ".[compare,mujoco]" && benchmarks/lengths/run.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1

# lengths <env> <budget> <episodes of an evaluation>
lengths() {
    python -m sb3_hybrid_grpo compare --env "$1" --n-envs 1 --update-sizes 2048 --batch-sizes 64 --normalize --seeds 10 \
        --algorithms ppo hybrid hybrid,adapt_rollouts:256 hybrid,adapt_rollouts:64 hybrid,adapt_rollouts:32 \
        hybrid,branch_horizon:64,adapt_rollouts:256 hybrid,batch_size:128 \
        --hyperparams learning_rate:0.0003 gamma:0.99 --budget "$2" --evaluations 8 --episodes "$3" --output benchmarks/lengths
}

lengths hybrid_grpo/Inventory-v0 65536 20
lengths hybrid_grpo/GustyHalfCheetah-v0 131072 10
lengths hybrid_grpo/Queue-v0 131072 20
lengths hybrid_grpo/GustyCartPoleSwingUp-v0 131072 20
python -m sb3_hybrid_grpo compare report benchmarks/lengths
