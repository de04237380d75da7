#!/usr/bin/env bash
# The class alone is swapped: SB3's default arguments for PPO and HybridGRPO. Adds the runs that are missing to this folder.
#
#   pip install -c constraints.txt -e ".[compare,mujoco]" && benchmarks/swap/run.sh [ENV_ID ...]
#
# Without an env: all, one after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1

# swap <env> <budget> <episodes of an evaluation> <envs that were asked for>
swap() {
    local env="$1" budget="$2" episodes="$3"
    shift 3
    [[ $# -eq 0 || " $* " == *" $env "* ]] || return 0
    python -m sb3_hybrid_grpo compare --env "$env" --algorithms ppo hybrid --n-envs 1 --update-sizes 2048 --batch-sizes 64 \
        --hyperparams learning_rate:0.0003 gamma:0.99 --seeds "${seeds:-10}" --budget "$budget" --evaluations 8 --episodes "$episodes" \
        --normalize --output benchmarks/swap
}

swap hybrid_grpo/Inventory-v0 65536 20 "$@"
swap hybrid_grpo/GustyHalfCheetah-v0 131072 10 "$@"
swap hybrid_grpo/GustyCartPoleSwingUp-v0 131072 20 "$@"
swap hybrid_grpo/Queue-v0 131072 20 "$@"
swap hybrid_grpo/GustyHopper-v0 131072 10 "$@"
swap CartPole-v1 65536 20 "$@"
swap Acrobot-v1 65536 20 "$@"
swap Pendulum-v1 131072 20 "$@"
swap HalfCheetah-v5 131072 10 "$@"
seeds=15 swap Hopper-v5 131072 10 "$@"
python -m sb3_hybrid_grpo compare report benchmarks/swap
