"""What the installed package carries besides its modules."""

import configparser
import inspect
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env

import sb3_hybrid_grpo
from sb3_hybrid_grpo import HybridGRPO, __version__

PACKAGE = Path(sb3_hybrid_grpo.__file__).parent
# What RL Zoo reads itself; everything else goes to the algorithm.
ZOO_KEYS = {"n_envs", "n_timesteps", "policy", "normalize", "env_wrapper", "frame_stack", "callback", "vec_env_wrapper"}
ZOO_ENVS = ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5")


def zoo_config() -> dict[str, dict[str, Any]]:
    """The configuration: in the package once it is installed, beside it in a clone."""
    folders = (PACKAGE / "zoo_configs", PACKAGE.parent / "zoo_configs")
    path = next(folder / "hybrid_grpo.yml" for folder in folders if folder.is_dir())
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert (PACKAGE / "version.txt").read_text(encoding="utf-8").strip() == __version__


def test_version_of_the_installed_package() -> None:
    try:
        installed = version("sb3-hybrid-grpo")
    except PackageNotFoundError:
        pytest.skip("runs from a folder, without an installation")
    assert installed == __version__


def test_setup_cfg_lists_every_package() -> None:
    path = PACKAGE.parent / "setup.cfg"
    if not path.is_file():
        pytest.skip("runs against an installed package, without its sources")
    config = configparser.ConfigParser()
    config.read(path, encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    found = {".".join(init.parent.relative_to(PACKAGE.parent).parts) for init in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"sb3_hybrid_grpo.zoo_configs"}


def test_py_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_zoo_config_names_known_envs() -> None:
    config = zoo_config()
    assert set(ZOO_ENVS) <= set(config)
    assert all(env_id in gym.registry for env_id in config)


@pytest.mark.parametrize("env_id", ZOO_ENVS)
def test_zoo_config_is_accepted(env_id: str) -> None:
    config = zoo_config()[env_id]
    accepted = inspect.signature(HybridGRPO).parameters
    assert not set(config) - ZOO_KEYS - set(accepted)
    hyperparams = {key: value for key, value in config.items() if key not in ZOO_KEYS}
    # The Zoo turns these strings into objects.
    for key in ("policy_kwargs", "learning_rate", "clip_range"):
        if isinstance(hyperparams.get(key), str):
            del hyperparams[key]
    HybridGRPO(config["policy"], make_vec_env(env_id, n_envs=config["n_envs"]), device="cpu", **hyperparams)


@pytest.mark.parametrize("env_id", ZOO_ENVS)
def test_zoo_config_minibatches_are_full(env_id: str) -> None:
    config = zoo_config()[env_id]
    samples = config["n_steps"] * config["n_envs"] * config["n_samples"]
    assert samples % config.get("batch_size", 64) == 0
