"""
Is there a better share β than the one number that is fitted to each rollout? Trains with that one, and asks of every rollout
how much of the advantages' variance others would have removed.

    python benchmarks/beta_variants.py > benchmarks/beta_variants.md

- own: the product's: one β, fitted to the rollout that it is applied to
- earlier: one β, from a running mean over the rollouts before (a tenth of each new one)
- shrunk: two parts of that, one part of the rollout's own
- by age: a β for every eighth of the 64 steps since the fork, fitted to the rollout
- other half: fitted to one half of the rollout's steps and applied to the other; beside "own, by halves", which is fitted to
  the half that it is applied to, it shows how much of what is removed is fitted noise
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_hybrid_grpo.envs  # noqa: F401 (registers them)
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark.presets import PRESETS
from sb3_hybrid_grpo.commands.cli import versions

ENVS = ["Inventory-v0", "Queue-v0", "GustyCartPoleSwingUp-v0", "CartPoleSwingUp-v0"]
UPDATE_SIZES = (2048, 512)
SIMULATOR_STEPS = 40_960
N_SAMPLES, HORIZON, BINS = 4, 64, 8
WARM_UP = 4  # rollouts before "earlier" means anything


def fit(advantages: np.ndarray, others: np.ndarray) -> float:
    a, b = advantages - advantages.mean(), others - others.mean()
    return float(np.clip((a * b).sum() / (b * b).sum(), 0, 1))


def removed(advantages: np.ndarray, others: np.ndarray, beta: Any) -> float:
    return float(1 - (advantages - beta * others).var() / advantages.var())


class Measured(HybridGRPO):
    """Measures before every update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shares: dict[str, list[float]] = defaultdict(list)
        self.earlier: float | None = None

    def train(self) -> None:
        buffer = self.rollout_buffer
        a = buffer.as_TEN(buffer.returns - buffer.values).astype(np.float64)
        b = (a.sum(axis=2, keepdims=True) - a) / (N_SAMPLES - 1)
        own, half = fit(a, b), len(a) // 2
        if self.earlier is not None and self._n_updates >= WARM_UP * self.n_epochs:
            self.shares["own"].append(removed(a, b, own))
            self.shares["earlier"].append(removed(a, b, self.earlier))
            self.shares["shrunk"].append(removed(a, b, (2 * self.earlier + own) / 3))
            self.shares["by age"].append(removed(a, b, self._by_age(a, b)))
            halves = [(slice(half), slice(half, None)), (slice(half, None), slice(half))]
            self.shares["own, by halves"].append(np.mean([removed(a[x], b[x], fit(a[x], b[x])) for x, _ in halves]))
            self.shares["other half"].append(np.mean([removed(a[x], b[x], fit(a[y], b[y])) for x, y in halves]))
        self.earlier = own if self.earlier is None else 0.9 * self.earlier + 0.1 * own
        super().train()

    def _by_age(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        cut_TEN = self.rollout_buffer.as_TEN(self.rollout_buffer.cut)
        age_TE = np.zeros(cut_TEN.shape[:2], int)
        for t in range(1, len(age_TE)):
            age_TE[t] = np.where(cut_TEN[t - 1, :, 1:].all(axis=1), 0, age_TE[t - 1] + 1)
        bins_TE = age_TE * BINS // HORIZON
        beta = np.zeros((*age_TE.shape, 1))
        for index in np.unique(bins_TE):
            here = bins_TE == index
            beta[here] = fit(a[here], b[here])
        return beta


def main() -> None:
    th.set_num_threads(1)
    print("# Other ways to choose β\n\nShare of the advantages' variance that each removed, mean over rollouts. What each is,")
    print("and the command: [`beta_variants.py`](beta_variants.py).\n")
    header = None
    for env_id in ENVS:
        hyperparams = PRESETS[f"hybrid_grpo/{env_id}"].hyperparams
        for update_size in UPDATE_SIZES:
            n_envs = update_size // (128 * N_SAMPLES)
            env = VecNormalize(make_vec_env(f"hybrid_grpo/{env_id}", n_envs, seed=5), gamma=hyperparams["gamma"])
            arguments = {
                "n_steps": 128 * N_SAMPLES,
                "seed": 5,
                "device": "cpu",
                "n_samples": N_SAMPLES,
                "branch_horizon": HORIZON,
            }
            model = Measured("MlpPolicy", env, **arguments, **hyperparams).learn(SIMULATOR_STEPS)
            if header is None:
                header = ["env", "update size", *model.shares]
                print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
            shares = [f"{np.mean(values):.3f}" for values in model.shares.values()]
            print("| " + " | ".join([env_id, str(update_size), *shares]) + " |", flush=True)
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))


if __name__ == "__main__":
    main()
