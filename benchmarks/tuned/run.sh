#!/usr/bin/env bash
# PPO and HybridGRPO, each tuned by the same search, then some with the other's arguments; see tuned.py. Adds what is missing to
# this folder, and writes the reports.
#
#   pip install -c constraints.txt -e ".[compare,mujoco,zoo]" && benchmarks/tuned/run.sh VENVS
#
# VENVS is the folder that the commands of ../third_party/README.md fill; there, or-gym, gym-electric-motor and minigrid need
# optuna, too.
set -euo pipefail
venvs="$(realpath "${1:?the folder of the virtual environments}")"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD:$PWD/benchmarks/third_party"

tune() { "$1" benchmarks/tuned/tuned.py --env "$2" --budget "$3" --episodes "$4" "${@:5}"; }

tune python hybrid_grpo/Inventory-v0 65536 20
tune python hybrid_grpo/GustyHalfCheetah-v0 131072 10
tune python hybrid_grpo/Queue-v0 131072 20
tune python hybrid_grpo/GustyCartPoleSwingUp-v0 131072 20
tune python CartPole-v1 65536 20
tune python Acrobot-v1 65536 20
tune python Pendulum-v1 65536 20
tune python HalfCheetah-v5 131072 10
tune python Hopper-v5 131072 10
tune "$venvs/venv-or-gym/bin/python" tasks:third_party/InvManagementBacklog-v0 98304 20
tune "$venvs/venv-or-gym/bin/python" tasks:third_party/Newsvendor-v0 98304 20
tune "$venvs/venv-gym-electric-motor/bin/python" tasks:third_party/MotorCurrent-v0 98304 20
tune "$venvs/venv-minigrid/bin/python" tasks:third_party/DynamicObstacles-v0 65536 50
python -m sb3_hybrid_grpo compare report benchmarks/tuned

exchange() { tune "$@" --exchange --seeds 5; }

exchange python Acrobot-v1 65536 20
exchange python Pendulum-v1 65536 20
exchange python HalfCheetah-v5 131072 10
exchange python Hopper-v5 131072 10
exchange "$venvs/venv-minigrid/bin/python" tasks:third_party/DynamicObstacles-v0 65536 50
python -m sb3_hybrid_grpo compare report benchmarks/tuned/exchanged
