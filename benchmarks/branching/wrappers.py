"""
Shows that branching is exact with every wrapper that changes what a step does or remembers something, alone and in stacks as
RL Baselines3 Zoo builds them, as exactness.py shows it for envs.

    cd benchmarks/branching && python wrappers.py > wrappers.md

Left out: gymnasium's wrappers of vector envs; HumanRendering, which is refused, for it would draw every sibling's step on the
screen; and those that convert to other arrays than numpy's, which Stable-Baselines3 does not take.
"""

import argparse
import functools
import importlib
import sys
import tempfile
import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from twins import MakeEnv, row, table_head, versions_of

from sb3_hybrid_grpo.benchmark.results import machine
from sb3_hybrid_grpo.commands.cli import versions

GYMNASIUM, SB3 = "gymnasium.wrappers.", "stable_baselines3.common.atari_wrappers."
CONTRIB, ZOO = "sb3_contrib.common.wrappers.", "rl_zoo3.wrappers."


class Reach(gym.Env[Any, Any]):
    """A point that the wind moves too is to reach a goal: a goal env, whose observations are dicts."""

    def __init__(self) -> None:
        place = spaces.Box(-9, 9, (2,), np.float32)
        self.observation_space = spaces.Dict({"observation": place, "achieved_goal": place, "desired_goal": place})
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.place = self.goal = np.zeros(2)

    def _observe(self) -> dict[str, np.ndarray]:
        place = self.place.astype(np.float32)
        return {"observation": place, "achieved_goal": place.copy(), "desired_goal": self.goal.astype(np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.place = np.clip(self.place + 0.3 * action + 0.1 * self.np_random.normal(size=2), -9, 9)
        distance = float(np.linalg.norm(self.place - self.goal))
        return self._observe(), -distance, False, False, {"is_success": distance < 0.7}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -np.linalg.norm(achieved - desired, axis=-1)


gym.register("Reach-v0", Reach, max_episode_steps=50)


def all_actions(env: gym.Env[Any, Any]) -> np.ndarray:
    """Allow every action."""
    return np.ones(env.action_space.n, bool)  # type: ignore[attr-defined]


class Case(NamedTuple):
    """An env in wrappers."""

    env_id: str
    wrappers: list[Any]
    """Innermost first: names as the Zoo's ``env_wrapper`` has them, or ``{name: arguments}``."""
    share: int = 1
    """It takes this fraction of the steps."""
    options: dict[str, Any] = {}  # noqa: RUF012  of a NamedTuple, and never changed
    needs: str = "gymnasium"
    """The package that provides the env."""


def _on(env_id: str, *wrappers: Any, **more: Any) -> Case:
    return Case(env_id, list(wrappers), **more)


_cartpole = functools.partial(_on, "CartPole-v1")
_pendulum = functools.partial(_on, "Pendulum-v1")
_reach = functools.partial(_on, "Reach-v0")
_breakout = functools.partial(_on, "BreakoutNoFrameskip-v4", needs="ale_py")
_drawn = functools.partial(_on, "CartPole-v1", share=10, options={"render_mode": "rgb_array"}, needs="pygame")
_FOLDER = tempfile.TemporaryDirectory()

ALONE: dict[str, list[Case]] = {
    GYMNASIUM: [
        _breakout({"AtariPreprocessing": {}}),
        _breakout({"AtariPreprocessing": {"terminal_on_life_loss": True, "frame_skip": 3, "noop_max": 7}}),
        _cartpole({"Autoreset": {}}),
        _pendulum({"ClipAction": {}}),
        _pendulum({"ClipReward": {"min_reward": -4.0}}),
        _cartpole({"DelayObservation": {"delay": 3}}),
        _pendulum({"DiscretizeAction": {"bins": 5}}),
        _pendulum({"DiscretizeObservation": {"bins": 4}}),
        _cartpole({"DtypeObservation": {"dtype": np.float64}}),
        _reach({"FilterObservation": {"filter_keys": ["observation"]}}),
        _reach({"FlattenObservation": {}}),
        _pendulum({"FrameStackObservation": {"stack_size": 4}}),
        _reach({"FrameStackObservation": {"stack_size": 3, "padding_type": "zero"}}),
        _breakout({"GrayscaleObservation": {"keep_dim": True}}),
        _breakout({"MaxAndSkipObservation": {"skip": 4}}),
        _cartpole({"NormalizeObservation": {}}),
        _pendulum({"NormalizeReward": {}}),
        _cartpole({"OrderEnforcing": {}}),
        _cartpole({"PassiveEnvChecker": {}}),
        _cartpole({"RecordEpisodeStatistics": {}}),
        _drawn({"RecordVideo": {"video_folder": _FOLDER.name, "episode_trigger": lambda episode: episode % 5 == 1}}),
        _cartpole({"RepeatAction": {"num_repeats": 3}}),
        _pendulum({"RescaleAction": {"min_action": np.float32(-1), "max_action": np.float32(1)}}),
        _pendulum({"RescaleObservation": {"min_obs": np.float32(-1), "max_obs": np.float32(1)}}),
        _pendulum({"ReshapeObservation": {"shape": (3, 1)}}),
        _breakout({"ResizeObservation": {"shape": (84, 84)}}),
        _cartpole({"StickyAction": {"repeat_action_probability": 0.4}}),
        _cartpole({"StickyAction": {"repeat_action_probability": 0.2, "repeat_action_duration": (2, 5)}}),
        _cartpole({"TimeAwareObservation": {}}),
        _pendulum({"TimeAwareObservation": {"flatten": False, "normalize_time": True}}),
        _cartpole({"TimeLimit": {"max_episode_steps": 11}}),
        _pendulum({"TransformAction": {"func": np.tanh, "action_space": spaces.Box(-3, 3, (1,), np.float32)}}),
        _cartpole({"TransformObservation": {"func": lambda seen: 2 * seen, "observation_space": None}}),
        _cartpole({"TransformReward": {"func": lambda reward: 0.1 * reward}}),
        _drawn({"AddRenderObservation": {"render_only": False}}),
        _drawn({"AddWhiteNoise": {"probability_of_noise_per_pixel": 0.1}}, {"AddRenderObservation": {}}, share=30),
        _drawn(
            {"ObstructView": {"obstructed_pixels_ratio": 0.1, "obstruction_width": 100}},
            {"AddRenderObservation": {}},
            share=30,
        ),
        _drawn({"RenderCollection": {}}),
    ],
    "stable_baselines3.common.monitor.": [_cartpole({"Monitor": {"filename": f"{_FOLDER.name}/alone"}})],
    SB3: [
        _breakout({"NoopResetEnv": {}}),
        _breakout({"FireResetEnv": {}}),
        _breakout({"EpisodicLifeEnv": {}}),
        _breakout({"MaxAndSkipEnv": {}}),
        _breakout({"ClipRewardEnv": {}}),
        _breakout({"WarpFrame": {}}),
        _breakout({"StickyActionEnv": {"action_repeat_probability": 0.25}}),
        _breakout({"AtariWrapper": {}}),
        _breakout({"AtariWrapper": {"action_repeat_probability": 0.25, "terminal_on_life_loss": False}}),
    ],
    CONTRIB: [
        _pendulum({"TimeFeatureWrapper": {"max_steps": 200}}),
        _reach({"TimeFeatureWrapper": {"test_mode": True}}),
        _cartpole({"ActionMasker": {"action_mask_fn": all_actions}}),
    ],
    ZOO: [
        _pendulum({"ActionNoiseWrapper": {}}),
        _pendulum({"ActionSmoothingWrapper": {"smoothing_coef": 0.6}}),
        _cartpole({"DelayedRewardWrapper": {"delay": 7}}),
        _pendulum({"FrameSkip": {"skip": 3}}),
        _pendulum({"HistoryWrapper": {"horizon": 3}}),
        _reach({"HistoryWrapperObsDict": {"horizon": 3}}),
        _cartpole({"MaskVelocityWrapper": {}}),
        _reach({"TruncatedOnSuccessWrapper": {"n_successes": 2}}),
        _breakout({"YAMLCompatResizeObservation": {"shape": [64, 64]}}),
    ],
}
"""By what provides the wrappers."""

_HISTORY, _TIME = {f"{ZOO}HistoryWrapper": {"horizon": 2}}, f"{CONTRIB}TimeFeatureWrapper"
STACKS: list[Case] = [
    _on("PongNoFrameskip-v4", f"{SB3}AtariWrapper", needs="ale_py"),
    _breakout(f"{SB3}AtariWrapper", {f"{GYMNASIUM}FrameStackObservation": {"stack_size": 4}}),
    _on(
        "CarRacing-v3",
        {f"{ZOO}FrameSkip": {"skip": 2}},
        {f"{ZOO}YAMLCompatResizeObservation": {"shape": [64, 64]}},
        {"gymnasium.wrappers.transform_observation.GrayscaleObservation": {"keep_dim": True}},
        share=20,
        needs="Box2D",
    ),
    _on("BipedalWalker-v3", _HISTORY, needs="Box2D"),
    _on("LunarLanderContinuous-v3", {f"{ZOO}FrameSkip": {"skip": 4}}, _HISTORY, needs="Box2D"),
    _on("HalfCheetah-v5", _TIME, needs="mujoco"),
    _cartpole(f"{ZOO}MaskVelocityWrapper"),
    _pendulum(f"{ZOO}MaskVelocityWrapper", _HISTORY),
    _pendulum(
        f"{ZOO}ActionNoiseWrapper",
        {f"{ZOO}ActionSmoothingWrapper": {"smoothing_coef": 0.5}},
        {f"{ZOO}DelayedRewardWrapper": {"delay": 5}},
    ),
    _reach(_TIME, {f"{ZOO}TruncatedOnSuccessWrapper": {"reward_offset": 1.0}}),
    _reach({f"{ZOO}HistoryWrapperObsDict": {"horizon": 2}}, f"{GYMNASIUM}FlattenObservation"),
    _on("MiniGrid-DoorKey-5x5-v0", "minigrid.wrappers.FlatObsWrapper", needs="minigrid"),
]
"""As in the Zoo's hyperparams: over a Monitor."""


def make(case: Case, stack: bool = False) -> gym.Env[Any, Any]:
    """
    Make an env and wrap it.

    :param case: What to make
    :param stack: Whether to make it as the Zoo does, which puts the wrappers over a Monitor
    :return: The env
    """
    env = gym.make(case.env_id, **case.options)
    env = Monitor(env) if stack else env
    for wrapper in case.wrappers:
        name, arguments = next(iter(wrapper.items())) if isinstance(wrapper, dict) else (wrapper, {})
        module, _, class_name = name.rpartition(".")
        env = getattr(importlib.import_module(module), class_name)(env, **arguments)
    return env


def named(case: Case) -> str:
    """
    Name an env in wrappers.

    :param case: What it is
    :return: The wrappers, innermost first, with their arguments, and the env
    """
    parts = []
    for wrapper in case.wrappers:
        name, arguments = next(iter(wrapper.items())) if isinstance(wrapper, dict) else (wrapper, {})
        shown = [f"{key}={value!r}" for key, value in arguments.items() if isinstance(value, int | float | str | tuple | list)]
        parts.append(
            f"{name.rpartition('.')[2]}({', '.join(one for one in shown if _FOLDER.name not in one)})".removesuffix("()")
        )
    return f"{', '.join(parts)} on {case.env_id}"


def cases() -> list[tuple[str, Case, MakeEnv]]:
    """
    List all that is to be examined.

    :return: Each one's name, what it is, and what makes it
    """
    alone = [
        case._replace(wrappers=[{f"{package}{name}": its} for one in case.wrappers for name, its in one.items()])
        for package, of_package in ALONE.items()
        for case in of_package
    ]
    return [
        (f"Zoo: {named(case)}" if stack else named(case), case, functools.partial(make, case, stack))
        for stack, wanted in ((False, alone), (True, STACKS))
        for case in wanted
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="steps of an env with each horizon (default: 1500)")
    parser.add_argument("--only", default="", help="only what has this in its name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    gym.logger.min_level = gym.logger.ERROR
    used = versions() | versions_of("sb3_contrib") | versions_of("rl_zoo3")
    print(table_head(options.steps))
    for name, case, make_env in cases():
        if options.only not in name:
            continue
        n_steps = options.steps // case.share
        name += f" ({n_steps} steps)" if case.share > 1 else ""
        try:
            gym.register_envs(importlib.import_module(case.needs))
        except ImportError:
            print(f"| {name} | not installed here | | | |")
            continue
        used |= versions_of(case.needs)
        print(row(name, make_env, n_steps), flush=True)
        print(name, file=sys.stderr)
    print(f"\n{', '.join([*(f'{name} {version}' for name, version in used.items()), machine()])}")


if __name__ == "__main__":
    main()
