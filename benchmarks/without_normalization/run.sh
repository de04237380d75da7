#!/usr/bin/env bash
# The swap of ../swap/run.sh and ../third_party/swap.sh without VecNormalize: seven of their tasks with noise in each step, and
# four without noise. Adds the runs that are missing to this folder.
#
#   pip install -c constraints.txt -e ".[compare,mujoco]" && benchmarks/without_normalization/run.sh VENVS
#
# VENVS is the folder that the commands of ../third_party/README.md fill.
set -euo pipefail
venvs="$(realpath "${1:?the folder of the virtual environments}")"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD:$PWD/benchmarks/third_party"

# swap <python> <env> <budget> <episodes of an evaluation> [<seeds>]
swap() {
    "$1" -m sb3_hybrid_grpo compare --env "$2" --algorithms ppo hybrid --n-envs 1 --update-sizes 2048 --batch-sizes 64 \
        --hyperparams learning_rate:0.0003 gamma:0.99 --seeds "${5:-10}" --budget "$3" --evaluations 8 --episodes "$4" \
        --no-normalize --output benchmarks/without_normalization
}

swap python hybrid_grpo/Inventory-v0 65536 20
swap python hybrid_grpo/Queue-v0 131072 20
swap python hybrid_grpo/GustyHalfCheetah-v0 131072 10
swap python hybrid_grpo/GustyCartPoleSwingUp-v0 131072 20
swap "$venvs/venv-or-gym/bin/python" tasks:third_party/InvManagementBacklog-v0 98304 20
swap "$venvs/venv-or-gym/bin/python" tasks:third_party/InvManagementLostSales-v0 98304 20
swap "$venvs/venv-pcgym/bin/python" tasks:third_party/Reactor-v0 65536 20
swap python CartPole-v1 65536 20
swap python Acrobot-v1 65536 20
swap python Pendulum-v1 131072 20
swap python HalfCheetah-v5 131072 10 20
python -m sb3_hybrid_grpo compare report benchmarks/without_normalization
