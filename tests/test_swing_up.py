"""The swing-up against the equations of motion, in still air and in wind."""

import math

import numpy as np
import pytest

from sb3_hybrid_grpo.envs import CartPoleSwingUp, GustyCartPoleSwingUp


def euler(state: np.ndarray, force: float) -> np.ndarray:
    """A step of two substeps, from the equations of motion solved as a linear system of the two accelerations."""
    for _ in range(2):
        _, speed, angle, spin = state
        # (M + m) ẍ + m l cos θ̈ = F + m l θ̇² sin   and   cos ẍ + (4/3) l θ̈ = g sin
        left = [[1.1, 0.05 * math.cos(angle)], [math.cos(angle), 4 / 3 * 0.5]]
        right = [force + 0.05 * spin**2 * math.sin(angle), 9.8 * math.sin(angle)]
        acceleration, spin_change = np.linalg.solve(left, right)
        state = state + 0.02 * np.array([speed, acceleration, spin, spin_change])
    return state


@pytest.mark.parametrize("env", [CartPoleSwingUp(), GustyCartPoleSwingUp()], ids=["still", "gusty"])
def test_equals_its_equations(env: CartPoleSwingUp) -> None:
    x, speed, cos, sin, spin = env.reset(seed=9)[0]
    state = np.array([x, speed, math.atan2(sin, cos), spin])
    draws, wind = env.np_random.standard_normal(40), 0.0
    env.reset(seed=9)
    actions = np.random.default_rng(1).normal(0, 1, size=40).astype(np.float32)
    for action, draw in zip(actions, draws, strict=True):
        state = euler(state, 10 * float(np.clip(action, -1, 1)))
        expected_reward = (1 + np.cos(state[2])) / 2 * np.clip(1 - (state[0] / 2.4) ** 2, 0, 1)
        if isinstance(env, GustyCartPoleSwingUp):
            wind = 0.9 * wind + 0.6 * draw
            state += [0, 0.2 * wind, 0, 0.5 * wind]
        observation, reward, terminated, truncated, info = env.step(np.array([action]))
        x, speed, angle, spin = state
        np.testing.assert_allclose(observation, [x, speed, np.cos(angle), np.sin(angle), spin], rtol=1e-3, atol=1e-3)
        assert reward == pytest.approx(expected_reward, abs=1e-3)
        assert terminated == (abs(x) > 2.4) and not truncated
        assert info == ({"wind": pytest.approx(wind)} if isinstance(env, GustyCartPoleSwingUp) else {})


def test_by_hand() -> None:
    env = CartPoleSwingUp(start_noise=0.0, n_substeps=1)
    np.testing.assert_allclose(env.reset(seed=0)[0], [0, 0, -1, 0, 0], atol=1e-6)
    # at rest, hanging: ẍ = (F + m l θ̈) / 1.1 with θ̈ = (F / 1.1) / (0.5 (4/3 - 0.1 / 1.1)) for cos = -1
    observation, reward, *_ = env.step(np.array([1.0]))
    spin_change = (10 / 1.1) / (0.5 * (4 / 3 - 0.1 / 1.1))
    np.testing.assert_allclose(observation, [0, 0.02 * (10 + 0.05 * spin_change) / 1.1, -1, 0, 0.02 * spin_change], atol=1e-6)
    assert reward == pytest.approx(0.0)


def test_ends_where_the_track_ends() -> None:
    env = CartPoleSwingUp()
    env.reset(seed=0)
    for _ in range(100):
        observation, reward, terminated, _, _ = env.step(np.array([1.0]))
        assert terminated == (abs(observation[0]) > 2.4)
        if terminated:
            assert reward == 0.0
            return
    pytest.fail("the cart never left the track")
