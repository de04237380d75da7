"""The package's own envs warn of nothing when SB3 makes them, and show their observations."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

import sb3_hybrid_grpo.envs  # noqa: F401 (registers them)

ENVS = ["Inventory-v0", "Queue-v0", "CartPoleSwingUp-v0", "GustyCartPoleSwingUp-v0"]


@pytest.mark.parametrize("name", [*ENVS, "GustyHalfCheetah-v0", "GustyHopper-v0"])
def test_sb3_makes_it_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_vec_env(f"hybrid_grpo/{name}", n_envs=1)
        env.reset()
        env.step(np.array([env.action_space.sample()]))


@pytest.mark.parametrize("name", ENVS)
def test_the_observation_is_drawn(name: str) -> None:
    env = gym.make(f"hybrid_grpo/{name}", render_mode="rgb_array")
    env.reset(seed=0)
    pictures = []
    for _ in range(2):
        picture = env.render()
        assert isinstance(picture, np.ndarray) and picture.dtype == np.uint8
        pictures.append(picture)
        env.step(env.action_space.sample())
    height, width, colours = pictures[0].shape
    assert colours == 3 and width > 50 and height > 50
    assert (pictures[0] != pictures[1]).any()


def test_without_a_render_mode_nothing_is_drawn() -> None:
    env = gym.make("hybrid_grpo/Queue-v0")
    env.reset(seed=0)
    assert env.unwrapped.render() is None
