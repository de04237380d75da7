"""
Is ρ, as trainings measure it, the ratio of variances that it stands for?

SB3's PPO trains a policy, which is then frozen. From many independent rollouts of it come (a) the variance of PPO's whole
policy gradient and that of HybridGRPO, K = 64, at equal simulator steps: their ratio; (b) the same ratio after each rollout's
advantages have lost their mean, as PPO subtracts the mean of a minibatch (``normalize_advantage``); (c) ρ, of the last layer
of the actor alone, within the same grouped rollouts, as ``train/gradient_variance_ratio`` has it. Intervals are 95 %, by
bootstrap over rollouts.

    OMP_NUM_THREADS=1 python benchmarks/measured_ratio.py > benchmarks/measured_ratio.md
"""

import sys
from typing import Any

import numpy as np
import torch as th

from sb3_hybrid_grpo.benchmark.gradient_rollouts import ESTIMATORS, Collector, Frozen, Size
from sb3_hybrid_grpo.benchmark.gradient_statistics import Sample, compare
from sb3_hybrid_grpo.benchmark.gradient_variance import SEED_STEP, train
from sb3_hybrid_grpo.benchmark.page import plain, table
from sb3_hybrid_grpo.benchmark.results import stamp
from sb3_hybrid_grpo.gradient_variance import GradientVariances
from sb3_hybrid_grpo.policy_scores import measured_variances

ENVS = ("hybrid_grpo/Inventory-v0", "hybrid_grpo/Queue-v0", "hybrid_grpo/CartPoleSwingUp-v0", "CartPole-v1")
BUDGET, ROLLOUTS, RESAMPLES, SIZE = 100_000, 100, 2000, Size()
PPO, GROUPS = ESTIMATORS[0], next(one for one in ESTIMATORS if one.name == "hybrid K=64")


class Measured(Collector):
    """Notes the variances that a training would note, too."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.variances: list[GradientVariances] = []

    def _on_rollout_end(self) -> None:
        super()._on_rollout_end()
        policy = self.model.policy
        found = measured_variances(policy, self.model.rollout_buffer, lambda obs, _: policy.get_distribution(obs))
        assert found is not None
        self.variances.append(found)


def gradients(collector: Collector, estimator: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rollouts' gradients from the advantages, and from the advantages without their mean."""
    plain, centred = [], []
    for _ in range(ROLLOUTS):
        found = collector.collect([estimator])[0]
        deviation = th.as_tensor(collector.model.rollout_buffer.advantages).std().item()
        plain.append(found.plain)
        centred.append(found.normalised * (deviation + 1e-8))
    collector.env.close()
    return np.stack(plain), np.stack(centred)


def row(env: str, frozen: Frozen, seed: int) -> tuple[str, ...]:
    rng = np.random.default_rng(seed)
    ppo = gradients(Collector(env, None, SIZE, seed, frozen), PPO)
    groups = Measured(env, GROUPS.horizon, SIZE, seed + SEED_STEP, frozen)
    ratios = [
        compare(Sample(own, rng, RESAMPLES), Sample(theirs, rng, RESAMPLES)).trace_ratio
        for own, theirs in zip(gradients(groups, GROUPS), ppo, strict=True)
    ]
    both = np.array([one[:2] for one in groups.variances])
    drawn = both[rng.integers(ROLLOUTS, size=(RESAMPLES, ROLLOUTS))].sum(axis=1)
    rho, (low, high) = both[:, 0].sum() / both[:, 1].sum(), np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    written = [f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in ratios]
    return env, f"{frozen.stage} ({frozen.trained_steps:,} steps)", *written, f"{rho:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    th.set_num_threads(1)
    rows = []
    for env in ENVS:
        for place, frozen in enumerate(train(env, BUDGET, 0, SIZE, lambda: None)):
            rows.append(row(env, frozen, (1 + 2 * place) * SEED_STEP))
            print(*rows[-1], file=sys.stderr, flush=True)
    print("# ρ beside the variance of the whole gradient\n")
    print("`python benchmarks/measured_ratio.py`, see there for what it measures.\n")
    whole = "variance of the whole gradient, over PPO's"
    header = ("env", "stage of the training", whole, "the same without the advantages' mean", "ρ within rollouts")
    print(table(header, rows))
    print(f"\n{ROLLOUTS} rollouts of {SIZE.simulator_steps:,} simulator steps each. {plain(stamp())}.")


if __name__ == "__main__":
    main()
