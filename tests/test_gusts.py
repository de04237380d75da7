"""Wind on the bodies of MuJoCo envs."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_hybrid_grpo.envs import GustWrapper

ENV_IDS = ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"]


def still(env_id: str) -> Any:
    """The bare MuJoCo env; Any, for its simulator."""
    return gym.make(env_id).unwrapped


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_equals_the_env_with_forces_applied_by_hand(env_id: str) -> None:
    gusty, plain = GustWrapper(gym.make(env_id), force=5.0), still(env_id)
    np.testing.assert_array_equal(gusty.reset(seed=1)[0], plain.reset(seed=1)[0])
    torso, wind = plain.model.body("torso").id, np.zeros(2)
    assert gusty.body == torso == 1
    gusty.action_space.seed(1)
    for _ in range(10):
        wind = 0.9 * wind + 0.44 * plain.np_random.normal(size=2)
        plain.data.xfrc_applied[torso] = [5.0 * wind[0], 0, 1.5 * wind[1], 0, 0, 0]
        action = gusty.action_space.sample()
        seen, expected = gusty.step(action), plain.step(action)
        np.testing.assert_array_equal(seen[0], expected[0])
        assert seen[1:4] == expected[1:4]
        np.testing.assert_array_equal(seen[4]["wind"], wind)
        assert seen[4].keys() == {*expected[4], "wind"}


def test_no_force_is_still_air() -> None:
    gusty, plain = GustWrapper(gym.make("HalfCheetah-v5"), force=0.0), still("HalfCheetah-v5")
    gusty.reset(seed=2)
    plain.reset(seed=2)
    for _ in range(5):
        np.testing.assert_array_equal(gusty.step(np.ones(6))[0], plain.step(np.ones(6))[0])


def test_reset_ends_the_wind() -> None:
    gusty = GustWrapper(gym.make("Hopper-v5"), force=5.0)
    simulator: Any = gusty.unwrapped
    gusty.reset(seed=3)
    for _ in range(3):
        gusty.step(np.zeros(3))
    assert np.any(simulator.data.xfrc_applied)
    gusty.reset(seed=3)
    assert not np.any(simulator.data.xfrc_applied)
    again = GustWrapper(gym.make("Hopper-v5"), force=5.0)
    again.reset(seed=3)
    np.testing.assert_array_equal(gusty.step(np.zeros(3))[0], again.step(np.zeros(3))[0])


@pytest.mark.parametrize("body", ["ffoot", 7])
def test_another_body(body: int | str) -> None:
    gusty = GustWrapper(gym.make("HalfCheetah-v5"), force=5.0, body=body)
    simulator: Any = gusty.unwrapped
    gusty.reset(seed=4)
    gusty.step(np.zeros(6))
    pushed = np.flatnonzero(np.any(simulator.data.xfrc_applied, axis=1))
    assert pushed.tolist() == [simulator.model.body("ffoot").id] == [7]


def test_wind_has_a_standard_deviation_of_one_in_the_long_run() -> None:
    gusty = GustWrapper(gym.make("HalfCheetah-v5").unwrapped, force=0.0)
    gusty.reset(seed=5)
    winds = np.array([gusty.step(np.zeros(6))[4]["wind"] for _ in range(5000)])
    np.testing.assert_allclose(winds.std(axis=0), 0.44 / np.sqrt(1 - 0.9**2), rtol=0.1)
    np.testing.assert_allclose((winds[1:] * winds[:-1]).mean(axis=0) / winds.var(axis=0), 0.9, rtol=0.1)


def test_registered_strengths_and_arguments() -> None:
    def force(env: gym.Env[Any, Any]) -> Any:
        return env.get_wrapper_attr("force")

    assert force(gym.make("hybrid_grpo/GustyHalfCheetah-v0")) == 40.0
    assert force(gym.make("hybrid_grpo/GustyHopper-v0")) == 4.0
    env = gym.make("hybrid_grpo/GustyHopper-v0", force=8.0, reset_noise_scale=0.0)
    assert force(env) == 8.0
    simulator: Any = env.unwrapped
    np.testing.assert_array_equal(env.reset(seed=0)[0][:5], simulator.init_qpos[1:])


def test_mujoco_is_imported_late_and_its_absence_named() -> None:
    code = (
        "import sys, gymnasium as gym, sb3_hybrid_grpo.envs\n"
        "if 'mujoco' in sys.modules: sys.exit(3)\n"
        "sys.modules['mujoco'] = None\n"
        "try: gym.make('hybrid_grpo/GustyHopper-v0')\n"
        "except gym.error.DependencyNotInstalled as error: sys.exit('sb3-hybrid-grpo[mujoco]' not in str(error))\n"
        "sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
