"""
How short grouped rollouts should become: ``adapt_rollouts`` off, and with several lower bounds, beside PPO.

SB3's default arguments, one env, VecNormalize; the policy alone, deterministic, on 20 episodes of other seeds. Adds the runs
that are missing to ``rollout_lengths.csv``, one after another, and prints the table of all that are there:

    OMP_NUM_THREADS=1 python benchmarks/rollout_lengths.py --seeds 10

The rows "128, square root" were made with lengths of √ρ times the longest, and at least 128.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO, __version__

VARIANTS: dict[str, dict[str, Any] | None] = {
    "PPO": None,
    "off": {"adapt_rollouts": False},
    "256": {"adapt_rollouts": 256},
    "200": {"adapt_rollouts": 200},
    "128": {"adapt_rollouts": 128},
}
ENVS = (
    "hybrid_grpo/Inventory-v0",
    "hybrid_grpo/Queue-v0",
    "hybrid_grpo/GustyCartPoleSwingUp-v0",
    "hybrid_grpo/GustyHalfCheetah-v0",
)


class Evaluations(BaseCallback):
    """Evaluates the policy at equal distances, and notes ρ."""

    def __init__(self, env: str, seed: int, budget: int, number: int = 8) -> None:
        super().__init__()
        self.env = VecNormalize(make_vec_env(env, seed=1000 + seed), training=False, norm_reward=False)
        self.every, self.scores = budget // number, []  # type: ignore[var-annotated]

    def _on_step(self) -> bool:
        if self.num_timesteps >= (len(self.scores) + 1) * self.every:
            training = self.model.get_vec_normalize_env()
            assert training is not None
            self.env.obs_rms = training.obs_rms
            self.scores.append(evaluate_policy(self.model, self.env, 20, warn=False)[0])
        return True


def one_run(env: str, variant: str, seed: int, budget: int) -> dict[str, Any]:
    options = VARIANTS[variant]
    envs, evaluations = VecNormalize(make_vec_env(env, seed=seed)), Evaluations(env, seed, budget)
    model: Any
    if options is None:
        model = PPO("MlpPolicy", envs, seed=seed)
    else:
        model = HybridGRPO("MlpPolicy", envs, seed=seed, branch_horizon=64, **options)
    start = time.process_time()
    model.learn(budget, callback=evaluations)
    seconds = round(time.process_time() - start, 1)
    ratio = None if options is None or model.auto_grouping.ratio is None else round(model.auto_grouping.ratio, 3)
    scores = np.round(evaluations.scores, 2).tolist()
    result = {"env": env, "variant": variant, "seed": seed, "budget": budget, "mean": round(float(np.mean(scores)), 2)}
    updates = model._n_updates // model.n_epochs
    return result | {"final": scores[-1], "updates": updates, "ratio": ratio, "cpu_seconds": seconds, "version": __version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=ENVS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=81_920)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    th.set_num_threads(1)
    rows = pd.read_csv(options.output) if options.output.exists() else pd.DataFrame()
    for seed in range(options.seeds):
        for env in options.env:
            for variant in options.variants:
                wanted = {"env": env, "variant": variant, "seed": seed, "budget": options.budget}
                if len(rows) and (rows[list(wanted)].astype(str) == pd.Series(wanted).astype(str)).all(axis=1).any():
                    continue
                rows = pd.concat([rows, pd.DataFrame([one_run(env, variant, seed, options.budget)])], ignore_index=True)
                rows.to_csv(options.output, index=False)
    by = rows.groupby(["env", "variant"], sort=False)[["mean", "final", "updates", "ratio", "cpu_seconds"]]
    print(by.agg(["mean", "sem"]).round(2).to_string())


if __name__ == "__main__":
    main()
