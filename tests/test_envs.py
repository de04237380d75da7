"""The noise-driven envs: what all of them promise."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import sb3_hybrid_grpo.envs
from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching import fork_env
from sb3_hybrid_grpo.envs import CartPoleSwingUp, GustWrapper, GustyCartPoleSwingUp, Inventory, Queue

HORIZONS = {
    "hybrid_grpo/Inventory-v0": 100,
    "hybrid_grpo/CartPoleSwingUp-v0": 250,
    "hybrid_grpo/GustyCartPoleSwingUp-v0": 250,
    "hybrid_grpo/Queue-v0": 200,
    "hybrid_grpo/GustyHalfCheetah-v0": 1000,
    "hybrid_grpo/GustyHopper-v0": 1000,
}
# what the noise of a step looks like: information that actions have no part in
NOISE = {
    "hybrid_grpo/Inventory-v0": "demand",
    "hybrid_grpo/GustyCartPoleSwingUp-v0": "wind",
    "hybrid_grpo/Queue-v0": "interarrival_time",
    "hybrid_grpo/GustyHalfCheetah-v0": "wind",
    "hybrid_grpo/GustyHopper-v0": "wind",
}


def bare(env_id: str) -> gym.Env[Any, Any]:
    """The env without time limit and checks, with the wrapper that brings the wind."""
    env = gym.make(env_id, disable_env_checker=True)
    while isinstance(env, (gym.wrappers.TimeLimit, gym.wrappers.OrderEnforcing)):
        env = env.env
    return env


def extreme_actions(env: gym.Env[Any, Any]) -> tuple[Any, Any]:
    """Two actions that are as different as can be."""
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete):
        return np.int64(0), np.int64(space.n - 1)
    assert isinstance(space, gym.spaces.Box)
    return space.low, space.high


def noise_seen(env: gym.Env[Any, Any], key: str, action: Any, n_steps: int) -> np.ndarray:
    """The noise of some steps with one action; an ended episode goes on, as the envs allow."""
    return np.array([env.step(action)[4][key] for _ in range(n_steps)])


@pytest.mark.parametrize("env_id", HORIZONS)
def test_registered_with_its_horizon(env_id: str) -> None:
    assert gym.spec(env_id).max_episode_steps == HORIZONS[env_id]


@pytest.mark.parametrize("env_id", HORIZONS)
# recommendations, not rules: the action of Inventory reaches further up than down, observations have no bound
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized", "ignore:.*m value is -?infinity")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_passes_the_env_checkers(env_id: str) -> None:
    check_env(bare(env_id), skip_render_check=True)  # MuJoCo would open a window
    check_env_for_sb3(gym.make(env_id))


@pytest.mark.parametrize("env_id", HORIZONS)
def test_made_again_from_its_spec(env_id: str) -> None:
    env = gym.make(env_id)
    assert env.spec is not None
    assert str(gym.make(env.spec)) == str(env)


@pytest.mark.parametrize("env_id", HORIZONS)
def test_reproducible_by_seed(env_id: str) -> None:
    def play(seed: int) -> np.ndarray:
        env = gym.make(env_id)
        env.action_space.seed(0)
        seen = [np.append(env.reset(seed=seed)[0], [0.0])]
        for _ in range(20):
            observation, reward, terminated, _, _ = env.step(env.action_space.sample())
            seen.append(np.append(observation, [reward]))
            if terminated:
                break
        return np.stack(seen)

    one, other = play(3), play(4)
    np.testing.assert_array_equal(one, play(3))
    shared = min(len(one), len(other))
    assert not np.array_equal(one[:shared], other[:shared])


@pytest.mark.parametrize("env_id", NOISE)
def test_noise_does_not_depend_on_actions(env_id: str) -> None:
    copies = [bare(env_id) for _ in range(2)]
    ends = []
    for env, action in zip(copies, extreme_actions(copies[0]), strict=True):
        env.reset(seed=5)
        ends.append((noise_seen(env, NOISE[env_id], action, 30), env.np_random.bit_generator.state))
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert len(np.unique(ends[0][0])) >= 30


@pytest.mark.parametrize("env_id", NOISE)
def test_siblings_of_a_fork_see_the_same_noise(env_id: str) -> None:
    env = bare(env_id)
    env.reset(seed=6)
    first, second = extreme_actions(env)
    noise_seen(env, NOISE[env_id], first, 3)
    siblings: Any = fork_env(env, 2)
    one = noise_seen(siblings[0], NOISE[env_id], first, 10)
    other = noise_seen(siblings[1], NOISE[env_id], second, 10)
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one)) >= 10


def test_siblings_step_beside_the_env_under_its_noise() -> None:
    env = make_branchable(gym.make("hybrid_grpo/Inventory-v0", disable_env_checker=True))
    env.reset(seed=7)
    for _ in range(5):
        seen = env.get_wrapper_attr("step_siblings")(np.array([[-1.0], [3.0]], dtype=np.float32), [True, True]).observations
        observation = env.step(np.zeros(1, dtype=np.float32))[0]
        # the logarithm of demand, and what the demand left in stock; the orders differ
        for sibling in seen:
            np.testing.assert_array_equal(sibling[[0, 1, 3]], observation[[0, 1, 3]])
        assert seen[0][2] == 0.0 and seen[1][2] == 2.0 and observation[2] == 0.5


@pytest.mark.parametrize("env_id", HORIZONS)
@pytest.mark.filterwarnings("ignore:.*render_mode='rgb_array' that is not in")
def test_hybrid_grpo_learns_from_it(env_id: str) -> None:
    model = HybridGRPO("MlpPolicy", env_id, n_steps=64, batch_size=64, n_epochs=1, branch_horizon=16, device="cpu", seed=0)
    assert model.learn(128).num_timesteps == 128


def test_ids_can_name_the_package_that_registers_them() -> None:
    assert isinstance(gym.make(f"{sb3_hybrid_grpo.envs.__name__}:hybrid_grpo/Queue-v0").unwrapped, Queue)


CARTPOLE = gym.make("CartPole-v1")
CHEETAH = gym.make("HalfCheetah-v5")


@pytest.mark.parametrize(
    ("make", "kwargs", "message"),
    [
        (Inventory, {"lead_time": 0}, "lead_time=0: it must be a whole number of at least 1"),
        (Inventory, {"lead_time": 1.5}, "lead_time=1.5"),
        (Inventory, {"base_demand": 0}, "base_demand=0: it must be a finite number above 0"),
        (Inventory, {"demand_persistence": 1.0}, "demand_persistence=1.0: it must be a number from 0"),
        (Inventory, {"holding_cost": -0.1}, "holding_cost=-0.1: it must be a finite number of at least 0"),
        (Inventory, {"order_cost": float("nan")}, "order_cost=nan"),
        (Inventory, {"backlog_cost": True}, "backlog_cost=True"),
        (Inventory, {"base_order": 30}, "base_order=30: it must be at most max_order=20"),
        (Inventory, {"initial_stock": 61}, "initial_stock=61: it must be a finite number between"),
        (Inventory, {"initial_stock": "full"}, "initial_stock='full': it must be a finite number between"),
        (CartPoleSwingUp, {"gravity": 0}, "gravity=0"),
        (CartPoleSwingUp, {"n_substeps": 0}, "n_substeps=0"),
        (CartPoleSwingUp, {"start_noise": -1}, "start_noise=-1"),
        (GustyCartPoleSwingUp, {"wind_persistence": -0.1}, "wind_persistence=-0.1"),
        (GustyCartPoleSwingUp, {"wind_noise": float("inf")}, "wind_noise=inf"),
        (GustyCartPoleSwingUp, {"max_force": -1}, "max_force=-1"),
        (Queue, {"service_rates": ()}, r"service_rates=\(\): it must be a sequence"),
        (Queue, {"service_rates": (1.0, 0.0)}, "service_rates"),
        (Queue, {"service_rates": ("fast", "slow")}, "service_rates"),
        (Queue, {"service_rates": 2.0}, "service_rates"),
        (Queue, {"job_size_shape": 1.0}, "job_size_shape=1.0: it must be above 1"),
        (Queue, {"mean_interarrival_time": 0}, "mean_interarrival_time=0"),
        (GustWrapper, {"env": CARTPOLE, "force": 1.0}, "which is no MuJoCo env.*HalfCheetah-v5"),
        (GustWrapper, {"env": CHEETAH, "force": -1.0}, "force=-1.0"),
        (GustWrapper, {"env": CHEETAH, "force": 1.0, "persistence": 1}, "persistence=1"),
        (GustWrapper, {"env": CHEETAH, "force": 1.0, "body": "tail"}, "body='tail': it must be one of.*'torso'"),
        (GustWrapper, {"env": CHEETAH, "force": 1.0, "body": 0}, "body=0: it must be a whole number from 1 to 7"),
        (GustWrapper, {"env": CHEETAH, "force": 1.0, "body": 1.5}, "body=1.5"),
    ],
)
def test_bad_arguments(make: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Received .*{message}"):
        make(**kwargs)
