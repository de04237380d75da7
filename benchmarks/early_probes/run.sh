#!/usr/bin/env bash
# A rule of "auto" that was not kept: where no step draws random numbers, probes after 1, 2, 4, ... single rollouts. Runs a copy of
# the package whose first probe comes after one. Adds the runs that are missing to this folder.
#
#   benchmarks/early_probes/run.sh VENVS
#
# VENVS is the folder that the commands of ../third_party/README.md fill.
set -euo pipefail
venvs="$(realpath "${1:?the folder of the virtual environments}")"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
copy="$(mktemp -d)"
trap 'rm -r "$copy"' EXIT
cp -r sb3_hybrid_grpo "$copy"
sed -i 's/next_probe: int = NEXT_PROBE/next_probe: int = 1/' "$copy/sb3_hybrid_grpo/auto_grouping.py"
export OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 PYTHONPATH="$copy:$PWD/benchmarks/third_party:$PWD/benchmarks/drawn_ahead"

# swap <python> <env> <budget> <--normalize or --no-normalize>
swap() {
    "$1" -m sb3_hybrid_grpo compare --env "$2" --algorithms ppo hybrid --n-envs 1 --update-sizes 2048 --batch-sizes 64 \
        --hyperparams learning_rate:0.0003 gamma:0.99 --seeds 10 --budget "$3" --evaluations 8 --episodes 20 "$4" \
        --output benchmarks/early_probes
}

swap python CartPole-v1 65536 --normalize
swap python drawn_ahead:drawn_ahead/Inventory-v0 65536 --no-normalize
swap "$venvs/venv-gym-electric-motor/bin/python" tasks:third_party/MotorCurrent-v0 98304 --normalize
python -m sb3_hybrid_grpo compare report benchmarks/early_probes
