"""
ρ in the probes that look for noise where no step draws random numbers: two grouped rollouts after one single rollout, and two
more after four more, with SB3's default arguments. Six trainings in each env, without VecNormalize and with it.

    OMP_NUM_THREADS=1 PYTHONPATH=benchmarks/drawn_ahead python benchmarks/probes.py > benchmarks/probes.md
"""

import sys
from typing import Any
from unittest import mock

import drawn_ahead  # noqa: F401 (registers its envs)
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.auto_grouping import FOUND_BELOW, AutoGrouping
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.results import stamp

CHOSEN_ON = {
    **{"drawn_ahead/Inventory-v0": "drawn ahead", "drawn_ahead/GustyCartPoleSwingUp-v0": "drawn ahead", "CartPole-v1": "no"},
    **{"Acrobot-v1": "no", "Pendulum-v1": "no", "HalfCheetah-v5": "no"},
}
OTHERS = {"hybrid_grpo/CartPoleSwingUp-v0": "no", "Hopper-v5": "no", "MountainCarContinuous-v0": "no"}
GROUPED = (0, 1, 1, 0, 0, 0, 0, 1, 1)
SEEDS, N_STEPS = 6, 2048


class Probes(BaseCallback):
    """Notes both variances of each grouped rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.variances: list[Any] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        measured = self.model._variances  # type: ignore[attr-defined]
        self.variances += [] if measured is None else [measured]


def ratios(env_id: str, normalized: bool, seed: int) -> list[float]:
    """ρ of the first two probes together, and of the last two."""
    env: Any = make_vec_env(env_id, seed=1000 * seed)
    model = HybridGRPO("MlpPolicy", VecNormalize(env) if normalized else env, adapt_rollouts=False, seed=1000 * seed)
    plan, probes = iter(GROUPED), Probes()
    with mock.patch.object(AutoGrouping, "next_is_grouped", lambda *_: bool(next(plan))):
        model.learn(len(GROUPED) * N_STEPS, callback=probes)
    pairs = probes.variances[:2], probes.variances[2:]
    return [sum(one.grouped for one in pair) / sum(one.independent for one in pair) for pair in pairs]


def main() -> None:
    th.set_num_threads(1)
    lines = []
    for env_id, noise in (CHOSEN_ON | OTHERS).items():
        for normalized in (False, True):
            found = np.array([ratios(env_id, normalized, seed) for seed in range(SEEDS)])
            cells = [", ".join(f"{ratio:.2f}" for ratio in np.sort(of_pair)) for of_pair in found.T]
            counts = [f"{(of_pair < FOUND_BELOW).sum()} of {SEEDS}" for of_pair in found.T]
            lines.append([env_id, noise, "with" if normalized else "without", *cells, *counts])
            print(lines[-1], file=sys.stderr)
    print("# ρ of two probes together\n\n`python benchmarks/probes.py`, see there. 0.6 was chosen on the first six envs.\n")
    header = ("env", "noise", "VecNormalize", "ρ after 2k steps, sorted", "after 14k steps", "below 0.6 after 2k", "after 14k")
    print(table(header, lines))
    print(f"\n{plain(stamp())}.")


if __name__ == "__main__":
    main()
