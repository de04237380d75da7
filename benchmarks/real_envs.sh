#!/usr/bin/env bash
# Trains on CartPole-v1, Pendulum-v1 and HalfCheetah-v5 with the train command and keeps, per env, what it wrote but the model:
# benchmarks/real_envs/<env>/{evaluation.json,learning_curve.png,monitor.csv,train.log}
#
#   pip install -c constraints.txt -e ".[extra,mujoco]" && benchmarks/real_envs.sh
#
# Stops with an error where a result misses its bar:
#   CartPole-v1     mean reward of 20 episodes >= 475
#   Pendulum-v1     mean >= -250, gamma=0.9, at most 300,000 simulator steps
#   HalfCheetah-v5  mean above a random policy's, normalised, about 50,000 simulator steps
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# train <env> <more arguments of the train command>
train() {
    local env="$1" result="real_envs/$1"
    shift
    echo "==> python -m sb3_hybrid_grpo train --env $env $*"
    mkdir -p "$result"
    # Runs in a scratch folder, so that the log shows the paths that a user sees.
    {
        echo "\$ python -m sb3_hybrid_grpo train --env $env $*"
        (cd "$scratch" && python -m sb3_hybrid_grpo train --env "$env" "$@" 2>"$scratch/stderr")
    } | tee "$result/train.log" | grep "^Mean reward" || { cat "$scratch/stderr"; exit 1; }
    cp "$scratch/logs/hybrid_grpo/${env}_1/"{evaluation.json,learning_curve.png,monitor.csv} "$result/"
}

# check <env> <Python condition on mean, steps>
check() {
    python - "real_envs/$1/evaluation.json" "$2" <<'PYTHON'
import json, sys

path, condition = sys.argv[1:]
report = json.load(open(path, encoding="utf-8"))
names = {"mean": report["mean_reward"], "steps": report["simulator_steps"]}
if not eval(condition, names):
    sys.exit(f"{report['env']} misses its bar: {condition}, with {names}")
print(f"{report['env']}: {condition}: yes")
PYTHON
}

train CartPole-v1
check CartPole-v1 "mean >= 475"

train Pendulum-v1 --timesteps 299008 --hyperparams gamma:0.9 learning_rate:lin_1e-3 use_sde:True sde_sample_freq:4
check Pendulum-v1 "mean >= -250 and steps <= 300_000"

train HalfCheetah-v5 --timesteps 50000 --normalize --hyperparams n_steps:128
check HalfCheetah-v5 "mean > 0"  # random actions: about -290
