"""The hyperparameters for RL Baselines3 Zoo."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.zoo import ALGORITHM, config_file
from tests.zoo import zoo_in

CONFIG: dict[str, dict[str, Any]] = yaml.safe_load(config_file().read_text(encoding="utf-8"))
# An env for the entries that are no env's
EXAMPLES = {"default": "CliffWalking-v1", "atari": "PongNoFrameskip-v4"}
# The Zoo's entries for envs that have got a new version since
ZOO_NAMES = {
    **{f"{name}-v5": f"{name}-v4" for name in ("HalfCheetah", "Hopper", "Walker2d", "Ant", "Swimmer", "Humanoid")},
    **{f"{name}-v5": f"{name}-v2" for name in ("Reacher", "InvertedPendulum")},
}
FROM_THE_ZOO = [name for name in CONFIG if not name.startswith("hybrid_grpo/")]
MISSING_PACKAGES = (gym.error.DependencyNotInstalled, gym.error.NamespaceNotFound, gym.error.NameNotFound)


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[None]:
    with zoo_in(tmp_path):
        yield


def samples(entry: dict[str, Any], n_steps: int = 2048) -> int:
    """Samples of an update."""
    return int(entry.get("n_envs", 1) * entry.get("n_steps", n_steps) * entry.get("n_samples", 1))


def ppo(name: str) -> dict[str, Any]:
    """The Zoo's own entry."""
    import rl_zoo3

    path = Path(rl_zoo3.__file__).parent / "hyperparams" / "ppo.yml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    entry: dict[str, Any] = entries[ZOO_NAMES.get(name, name)]
    return entry


def test_there_is_an_entry_for_every_env_of_the_package() -> None:
    assert {name for name in CONFIG if "/" in name} == {name for name in gym.registry if name.startswith("hybrid_grpo/")}


@pytest.mark.parametrize("name", CONFIG)
def test_the_model_of_each_entry_can_be_made(name: str, zoo: None) -> None:
    from rl_zoo3.exp_manager import ExperimentManager

    env_id = EXAMPLES.get(name, name)
    try:
        gym.make(env_id).close()
    except MISSING_PACKAGES as error:
        pytest.skip(str(error))
    manager = ExperimentManager(Namespace(), ALGORITHM, env_id, "logs", eval_freq=-1, verbose=0, device="cpu")
    made = manager.setup_experiment()
    assert made is not None
    model = made[0]
    assert isinstance(model, HybridGRPO)
    entry = CONFIG[name]
    assert model.n_samples == entry["n_samples"]
    assert model.branch_horizon == entry.get("branch_horizon", "auto")
    assert model.n_envs * model.n_steps * model.n_samples == samples(entry)
    assert manager.n_timesteps == entry["n_timesteps"]
    assert (model.get_vec_normalize_env() is not None) == entry.get("normalize", False)
    model.get_env().close()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", FROM_THE_ZOO)
def test_the_simulator_steps_are_those_of_the_zoos_ppo(name: str, zoo: None) -> None:
    assert CONFIG[name]["n_timesteps"] * CONFIG[name]["n_samples"] == ppo(name)["n_timesteps"]


@pytest.mark.parametrize("name", FROM_THE_ZOO)
def test_an_update_has_the_samples_of_the_zoos_ppo(name: str, zoo: None) -> None:
    times = 2 if name == "MountainCarContinuous-v0" else 1
    assert samples(CONFIG[name]) == times * samples(ppo(name))


@pytest.mark.parametrize("name", FROM_THE_ZOO)
def test_everything_else_is_as_in_the_zoos_ppo(name: str, zoo: None) -> None:
    spread = {"n_envs", "n_timesteps", "n_steps", "n_samples", "branch_horizon"}

    def others(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in entry.items() if key not in spread}

    assert others(CONFIG[name]) == others(ppo(name))


@pytest.mark.parametrize("name", CONFIG)
def test_minibatches_are_full(name: str) -> None:
    batch_size = CONFIG[name].get("batch_size", 64)
    assert samples(CONFIG[name]) % batch_size == 0 or samples(CONFIG[name]) < batch_size
