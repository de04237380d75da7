"""The speed benchmark's section on how cost grows with the group, the number of envs, and the network."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from stable_baselines3 import PPO

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.benchmark.speed_cases import Size, build, make_envs, short_name
from sb3_hybrid_grpo.benchmark.speed_report import Row
from sb3_hybrid_grpo.benchmark.speed_runner import Runner

BASE = {"n_samples": 4, "n_envs": 4, "width": 64}
"""What is not varied; SB3's width."""
POINTS: dict[str, tuple[int, ...]] = {
    "n_samples": (1, 2, 4, 8, 16, 32),
    "n_envs": (1, 2, 4, 8, 16),
    "width": (64, 128, 256, 512),
}
HORIZONS = (1, 64)


def measure_scaling(
    env_id: str,
    size: Size,
    done: Callable[[str], None],
    points: Mapping[str, Sequence[int]] = POINTS,
    horizons: Sequence[int] = HORIZONS,
) -> list[Row]:
    """
    Vary one thing at a time.

    :param env_id: The env's id.
    :param size: How much to measure.
    :param done: Called with a case's name after each measurement.
    :param points: Values by what is varied.
    :param horizons: Branch horizons K.
    :return: For every point PPO with the same envs and network, and a row for each horizon.
    """

    def runner(algorithm: Any, n_envs: int, width: int, **groups: int) -> Runner:
        network = {"net_arch": [width, width]}
        arguments: dict[str, Any] = {"n_epochs": size.n_epochs, "policy_kwargs": network, **groups}
        built = build(algorithm, make_envs(env_id, n_envs), size.samples, **arguments)
        built.warm_up(size.warm_up)
        return built

    def row(varied: str, value: int, algorithm: str, horizon: str) -> Row:
        labels = {"varied": varied, "value": str(value), "algorithm": algorithm, "branch_horizon": horizon}
        return Row({"env": short_name(env_id), **labels}, size.settings())

    ppo = cache(lambda n_envs, width: runner(PPO, n_envs, width))
    rows = []
    for varied, value in ((varied, value) for varied, values in points.items() for value in values):
        at = BASE | {varied: value}
        peer, peer_row = ppo(at["n_envs"], at["width"]), row(varied, value, "PPO", "")
        rows.append(peer_row)
        for horizon in horizons:
            own, own_row = runner(HybridGRPO, **at, branch_horizon=horizon), row(varied, value, "HybridGRPO", str(horizon))
            rows.append(own_row)
            for _ in range(size.repeats):
                other = peer.measure()
                peer_row.add(**other.named())
                own_row.add(**own.measure().beside(other))
                done(own_row.case)
    return rows
