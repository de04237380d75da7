#!/usr/bin/env bash
# The class alone is swapped: SB3's default arguments for PPO and HybridGRPO. Adds the runs that are missing to swap/.
#
#   benchmarks/third_party/swap.sh VENVS [TASK ...]
#
# VENVS is the folder that README.md's commands fill. Without a task: all, one after the other.
set -euo pipefail
venvs="$(realpath "${1:?the folder of the virtual environments}")"
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD:$PWD/benchmarks/third_party"

# swap <library> <task> <budget> <episodes of an evaluation> <tasks that were asked for>
swap() {
    local python="$venvs/venv-$1/bin/python" task="$2" budget="$3" episodes="$4"
    shift 4
    [[ $# -eq 0 || " $* " == *" $task "* ]] || return 0
    "$python" -m sb3_hybrid_grpo compare --env "tasks:third_party/$task-v0" --algorithms ppo hybrid --n-envs 1 \
        --update-sizes 2048 --batch-sizes 64 --hyperparams learning_rate:0.0003 gamma:0.99 --seeds 10 --budget "$budget" \
        --evaluations 8 --episodes "$episodes" --normalize --output benchmarks/third_party/swap
    "$python" -m sb3_hybrid_grpo compare report benchmarks/third_party/swap
}

swap or-gym InvManagementBacklog 98304 20 "$@"
swap or-gym InvManagementLostSales 98304 20 "$@"
swap or-gym Newsvendor 98304 20 "$@"
swap or-gym PortfolioOpt 98304 20 "$@"
swap gym-electric-motor MotorCurrent 98304 20 "$@"
swap pcgym Reactor 65536 20 "$@"
swap minigrid DynamicObstacles 131072 50 "$@"
swap citylearn Buildings 32768 8 "$@"
