"""Atari envs are branched exactly, with Stable-Baselines3's wrappers; the simulator's own sticky actions are refused."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import make_branchable
from sb3_hybrid_grpo.branching.engines import CannotCopyError
from sb3_hybrid_grpo.branching.sibling import CopiedEnv

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")
gym.register_envs(ale_py)

SHORT: dict[str, Any] = {"max_num_frames_per_episode": 400}


def wrapped(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    return AtariWrapper(gym.make(name, **SHORT), **kwargs)


def play(env: gym.Env[Any, Any], actions: list[int]) -> tuple[list[Any], int]:
    """What the actions lead to, through ends of episodes, and how many ended."""
    seen: list[Any] = []
    ends = 0
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation.tobytes(), float(reward), terminated, truncated, copy.deepcopy(info)))
        if terminated or truncated:
            ends += 1
            seen.append(env.reset()[0].tobytes())
    return seen, ends


@pytest.mark.parametrize(
    "make",
    [
        lambda: wrapped("BreakoutNoFrameskip-v4", action_repeat_probability=0.25, terminal_on_life_loss=False),
        lambda: gym.make(
            "ALE/Breakout-v5", mode=8, difficulty=1, repeat_action_probability=0.0, disable_env_checker=True, **SHORT
        ),
        lambda: gym.make("Pong-v4", render_mode="rgb_array", disable_env_checker=True, **SHORT),
    ],
    ids=["Breakout with sticky actions", "v5 with a mode", "random frame skip"],
)
def test_copies_go_on_like_the_env_and_leave_it_alone(make: Callable[[], gym.Env[Any, Any]]) -> None:
    env, twin, fresh = make(), make(), make()
    for one in (env, twin):
        one.reset(seed=5)
    rng = np.random.default_rng(0)
    n_actions = int(env.action_space.n)  # type: ignore[attr-defined]
    copy_of_env: CopiedEnv | None = None
    ends = 0
    for t in range(8):
        branch = rng.integers(n_actions, size=60).tolist()
        copy_of_env = CopiedEnv(env, copy_of_env)  # the second one is the first, written anew
        copy_of_copy = CopiedEnv(copy_of_env.env)
        truth = play(CopiedEnv(env).env, branch)
        assert play(copy_of_env.env, branch) == play(copy_of_copy.env, branch) == truth
        ends += truth[1]
        assert play(copy_of_env.env, branch) == play(copy_of_copy.env, branch)  # they go on, with random numbers of their own
        for one in (copy_of_copy.env, fresh):  # loads the game anew
            one.reset(seed=t)
        assert play(copy_of_copy.env, branch) == play(fresh, branch)
        actions = rng.integers(n_actions, size=20).tolist()
        assert play(env, actions) == play(twin, actions), f"fork {t}"
    assert ends > 0


def test_an_emulator_is_used_again_unless_it_runs_another_game() -> None:
    env = gym.make("PongNoFrameskip-v4", disable_env_checker=True)
    env.reset(seed=1)
    ale: Any = env.unwrapped.ale  # type: ignore[attr-defined]
    other = ale_py.roms.get_rom_path("breakout")
    copied, emulators = None, []
    for game in (None, None, other):
        if game is not None:
            ale.loadROM(game)
        copied = CopiedEnv(env, copied)
        emulators.append(copied.env.unwrapped.ale)
    assert emulators[0] is emulators[1] is not emulators[2]
    assert emulators[2].getString("rom_file") == str(other)
    ale.setInt("max_num_frames_per_episode", 9)
    assert CopiedEnv(env, copied).env.unwrapped.ale.getInt("max_num_frames_per_episode") == 9


def test_an_emulator_that_makes_sounds_is_not_copied() -> None:
    env = wrapped("PongNoFrameskip-v4")
    env.reset(seed=0)
    CopiedEnv(env)
    env.unwrapped.ale.setBool("sound", True)  # type: ignore[attr-defined]
    with pytest.raises(CannotCopyError, match="shows or records"):
        CopiedEnv(env)


def test_living_siblings_leave_no_trace() -> None:
    env, twin = make_branchable(wrapped("BreakoutNoFrameskip-v4")), wrapped("BreakoutNoFrameskip-v4")
    branching: Any = env
    for one in (env, twin):
        one.reset(seed=2)
    rng = np.random.default_rng(1)
    for t in range(100):
        steps = branching.step_siblings(rng.integers(4, size=2), [t % 16 == 0] * 2)
        assert isinstance(steps.rewards, list), steps
        action = [int(rng.integers(4))]
        assert play(env, action) == play(twin, action)
    assert not branching.sibling_maker.forks


@pytest.mark.parametrize("horizon", [8, "episode"])
def test_training_from_images_through_stacked_frames(horizon: Any) -> None:
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=2, seed=0), n_stack=4)
    policy = {"features_extractor_kwargs": {"features_dim": 16}}
    small: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 1, "seed": 0, "policy_kwargs": policy}
    model = HybridGRPO("CnnPolicy", env, n_samples=2, branch_horizon=horizon, **small).learn(32)
    assert model.num_timesteps == 64


@pytest.mark.parametrize("name", ["ALE/Pong-v5", "PongNoFrameskip-v0"])
def test_sticky_actions_of_the_simulator_take_forks_with_advice(name: str) -> None:
    env = make_branchable(gym.make(name))
    env.reset(seed=0)
    reasons = env.get_wrapper_attr("fork_reasons")()
    for advice in (
        "AtariEnv.ale repeats actions",
        "repeat_action_probability=0.0",
        "NoFrameskip-v4",
        "AtariWrapper(env, action_repeat_probability=0.25)",
    ):
        assert advice in reasons
