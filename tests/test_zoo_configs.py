"""The hyperparameters for RL Baselines3 Zoo: PPO's own entries, and those of envs that the Zoo does not list."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.zoo import ALGORITHM, config_file
from tests.zoo import command, zoo_in

CONFIG: dict[str, dict[str, Any]] = yaml.safe_load(config_file().read_text(encoding="utf-8"))
# The Zoo's entries for envs that have got a new version since
ZOO_NAMES = {
    **{f"{name}-v5": f"{name}-v4" for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Humanoid")},
    **{f"{name}-v5": f"{name}-v2" for name in ("Reacher", "InvertedPendulum")},
}
OF_THE_ZOO = (
    "CartPole-v1",
    "Pendulum-v1",
    "MountainCarContinuous-v0",
    "LunarLander-v3",
    "PongNoFrameskip-v4",
    "CliffWalking-v1",
)
MISSING_PACKAGES = (gym.error.DependencyNotInstalled, gym.error.NamespaceNotFound, gym.error.NameNotFound)


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[None]:
    with zoo_in(tmp_path):
        yield


def ppo_entries() -> dict[str, dict[str, Any]]:
    import rl_zoo3

    path = Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml"
    entries: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


def manager_of(algo: str, env_id: str) -> Any:
    from sb3_hybrid_grpo.zoo.manager import experiment_manager

    return experiment_manager(Namespace(), algo, env_id, "logs", eval_freq=-1, verbose=0, device="cpu")


def test_the_file_names_every_env_of_the_package_and_none_of_the_zoos(zoo: None) -> None:
    assert {name for name in CONFIG if "/" in name} == {name for name in gym.registry if name.startswith("hybrid_grpo/")}
    assert not CONFIG.keys() & ppo_entries().keys()


def test_entries_for_new_versions_are_the_zoos_for_ppo(zoo: None) -> None:
    entries = ppo_entries()
    assert {name: entry for name, entry in CONFIG.items() if "/" not in name} == {
        name: entries[old] for name, old in ZOO_NAMES.items()
    }


def test_all_other_envs_take_the_zoos_entry_for_ppo(zoo: None) -> None:
    for name in {*ppo_entries(), *OF_THE_ZOO} & gym.registry.keys():
        ours, zoos = manager_of(ALGORITHM, name), manager_of("ppo", name)
        assert (ours.config, ours.read_hyperparameters()) == (zoos.config, zoos.read_hyperparameters())


@pytest.mark.parametrize("name", [*CONFIG, *OF_THE_ZOO])
def test_the_model_of_each_entry_can_be_made(name: str, zoo: None) -> None:
    try:
        gym.make(name).close()
    except MISSING_PACKAGES as error:
        pytest.skip(str(error))
    manager = manager_of(ALGORITHM, name)
    model, entry = manager.setup_experiment()
    assert isinstance(model, HybridGRPO)
    assert (model.n_samples, model.branch_horizon) == (4, "auto")
    assert (model.n_envs, model.n_steps) == (entry.get("n_envs", 1), entry.get("n_steps", 2048))
    assert manager.n_timesteps == entry["n_timesteps"]
    assert (model.get_vec_normalize_env() is not None) == entry.get("normalize", False)
    model.get_env().close()  # type: ignore[union-attr]


def test_with_ppos_entry_it_trains_as_ppo_does(zoo: None) -> None:
    """In envs without noise, to the bit; also where a schedule ends below 0, because the last rollout exceeds the budget."""
    from stable_baselines3 import PPO

    for algo in ("ppo", ALGORITHM):
        command("train", "--algo", algo, "--env", "CartPole-v1", "-n", 600, "--seed", 1, "--eval-freq", 200, "--device", "cpu")
    ppo = PPO.load("logs/ppo/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    ours = HybridGRPO.load("logs/hybrid_grpo/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    assert (ours.num_timesteps, ours._n_updates) == (ppo.num_timesteps, ppo._n_updates) == (768, 60)
    assert all((one == other).all() for one, other in zip(ours.policy.parameters(), ppo.policy.parameters(), strict=True))
    first, second = (Path(f"logs/{algo}/CartPole-v1_1/evaluations.npz").read_bytes() for algo in ("ppo", ALGORITHM))
    assert first == second
