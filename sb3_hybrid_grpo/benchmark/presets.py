"""The settings that all algorithms share on each env of a comparison."""

from dataclasses import dataclass, field
from typing import Any

_ALGORITHMS = ("ppo", "hybrid,branch_horizon:64", "hybrid")


@dataclass(frozen=True)
class Preset:
    """
    Settings of all runs on an env: the options of ``compare``, and how an update is divided among envs.

    :param n_envs: Number of envs, the same for every algorithm. None: each env takes ``executed_steps`` steps between two
        updates, so PPO has as many envs as HybridGRPO has members.
    """

    budget: int = 163_840
    seeds: int = 5
    evaluations: int = 16
    episodes: int = 50
    normalize: bool = True
    algorithms: tuple[str, ...] = _ALGORITHMS
    n_envs: int | None = None
    executed_steps: int = 128
    update_sizes: tuple[int, ...] = (2048, 512)
    batch_sizes: tuple[int, ...] = (64,)
    hyperparams: dict[str, Any] = field(default_factory=lambda: {"gamma": 0.98, "learning_rate": 1e-3})


_SWING_UP = Preset(budget=245_760, executed_steps=256, update_sizes=(4096, 1024))
_MUJOCO = Preset(204_800, 10, 10, 10, update_sizes=(2048,), hyperparams={"gamma": 0.99, "learning_rate": 3e-4})
# Without --env, `compare` runs these. Other envs get the defaults of Preset.
PRESETS = {
    "hybrid_grpo/Inventory-v0": Preset(
        episodes=100, update_sizes=(2048, 1024, 512), algorithms=(*_ALGORITHMS, "trpo", "paper", "grpo")
    ),
    "hybrid_grpo/Queue-v0": Preset(),
    **dict.fromkeys(("hybrid_grpo/GustyCartPoleSwingUp-v0", "hybrid_grpo/CartPoleSwingUp-v0"), _SWING_UP),
    "CartPole-v1": Preset(budget=65_536, algorithms=(*_ALGORITHMS, "hybrid,branch_horizon:64,group_baseline:0")),
    "Pendulum-v1": Preset(hyperparams={"gamma": 0.9, "learning_rate": 1e-3}),
    "Acrobot-v1": Preset(budget=98_304, hyperparams={"gamma": 0.99, "learning_rate": 1e-3}),
    **dict.fromkeys(("hybrid_grpo/GustyHalfCheetah-v0", "HalfCheetah-v5", "hybrid_grpo/GustyHopper-v0"), _MUJOCO),
}
