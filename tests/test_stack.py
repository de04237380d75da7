"""Siblings see what the VecEnv wrappers would have shown, had the env itself taken their actions."""

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_hybrid_grpo.branching import Groups
from sb3_hybrid_grpo.branching.stack import learn_from_free, stages_of
from tests.toy_envs import walk

Wrap = Callable[[Any], VecEnv]


class Camera(gym.Env[Any, Any]):
    """A random walk seen as an image, as numbers, or as both; ends beyond 4, is cut off after 11 steps."""

    def __init__(self, kind: str = "dict") -> None:
        image = spaces.Box(0, 255, (36, 37, 3) if kind != "channels first" else (3, 36, 37), np.uint8)
        vector = spaces.Box(-np.inf, np.inf, (2,))
        both = spaces.Dict({"image": image, "vector": vector})
        self.observation_space = {"dict": both, "image": image, "vector": vector, "channels first": image}[kind]
        self.kind, self.image_space = kind, image
        self.action_space = spaces.Discrete(4)
        self.x, self.t = 0.0, 0

    def _observe(self) -> Any:
        image = np.full(self.image_space.shape, 10 * (self.t + 1), dtype=np.uint8)
        image[0, 0, 0] = int(abs(20 * self.x)) % 256
        vector = np.array([self.x, self.t], dtype=np.float32)
        return {"dict": {"image": image, "vector": vector}, "vector": vector}.get(self.kind, image)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.normal()), 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.x += 0.5 * float(action) + float(self.np_random.normal())
        self.t += 1
        return self._observe(), self.x, self.x > 4, self.t >= 11, {}


def _normalize(env: Any, **options: Any) -> VecEnv:
    wrapped = VecNormalize(env, **options)
    rng = np.random.default_rng(0)
    statistics = getattr(wrapped, "obs_rms", {})
    for rms in statistics.values() if isinstance(statistics, dict) else [statistics]:
        rms.update(rng.normal(1, 3, size=(50, *rms.mean.shape)))
    wrapped.ret_rms.update(rng.normal(0, 4, size=50))
    wrapped.training = False
    return wrapped


def _dict_normalize(env: Any) -> VecEnv:
    return _normalize(env, norm_obs_keys=["vector"])


def _rewards_only(env: Any) -> VecEnv:
    return _normalize(env, norm_obs=False)


def _stack(env: Any) -> VecEnv:
    return VecFrameStack(env, 3)


def _extract(env: Any) -> VecEnv:
    return VecExtractDictObs(env, "vector")


def _extract_image(env: Any) -> VecEnv:
    return VecExtractDictObs(env, "image")


def _orders(kind: str, *chain: Wrap) -> list[tuple[str, tuple[Wrap, ...]]]:
    return [(kind, order) for order in itertools.permutations(chain)]


CHAINS: list[tuple[str, tuple[Wrap, ...]]] = [
    *_orders("dict", _stack, _dict_normalize, VecMonitor),
    *_orders("dict", VecTransposeImage, _stack, VecCheckNan),
    *_orders("vector", _stack, _normalize, VecCheckNan),
    ("dict", (_dict_normalize, _stack, _extract)),
    ("dict", (_stack, _extract, _normalize)),
    ("dict", (_extract, _stack, _normalize, VecMonitor)),
    ("dict", (VecMonitor, _extract_image, VecTransposeImage, _stack, _rewards_only)),
    ("dict", (VecTransposeImage, _extract_image, _stack)),
    ("image", (_stack, VecTransposeImage)),
    ("image", (VecTransposeImage, _stack)),
    ("channels first", (_stack, _rewards_only)),
    ("channels first", (_stack, _stack)),
]


def _make(kind: str, chain: tuple[Wrap, ...], n_envs: int = 2) -> VecEnv:
    env: VecEnv = DummyVecEnv([lambda: Camera(kind)] * n_envs)
    for wrap in chain:
        env = wrap(env)
    env.seed(3)
    return env


def _row(observations: Any, row: int) -> Any:
    return {k: v[row] for k, v in observations.items()} if isinstance(observations, dict) else observations[row]


def _name(chain: Any) -> str:
    return "-".join(wrap.__name__.strip("_") for wrap in chain) if isinstance(chain, tuple) else str(chain)


@pytest.mark.parametrize(("kind", "chain"), CHAINS, ids=_name)
def test_siblings_equal_a_twin_that_takes_their_actions(kind: str, chain: tuple[Wrap, ...]) -> None:
    n_samples, n_envs, horizon = 3, 2, 5
    env = _make(kind, chain)
    groups = Groups(env, n_samples, horizon)
    groups.start(True, None)
    observations = env.reset()
    rng = np.random.default_rng(1)
    twins: dict[tuple[int, int], VecEnv] = {}
    past: list[np.ndarray] = []
    n_compared = n_ends = 0
    for _ in range(20):
        groups.observations(observations)
        for m, e in zip(*np.nonzero(groups.starts_ME), strict=True):  # the twin does all that member 0 did before
            twins[m, e] = _make(kind, chain)
            twins[m, e].reset()
            for actions in past:
                twins[m, e].step(actions)
        actions = rng.integers(4, size=(n_samples, n_envs))
        step = groups.step(actions)
        past.append(actions[0])
        next_observations = groups.observations(step.observations)
        for (m, e), twin in twins.items():
            n_compared += 1
            seen, rewards, dones, infos = twin.step(actions[m + 1])
            cut, terminated = step.cut_NE[m + 1, e], step.terminated_NE[m + 1, e]
            assert step.rewards_NE[m + 1, e] == rewards[e]
            assert terminated == (dones[e] and not infos[e]["TimeLimit.truncated"])
            assert cut or not dones[e]
            reached = infos[e]["terminal_observation"] if dones[e] else _row(seen, e)
            if not cut:
                np.testing.assert_equal(_row(next_observations, (m + 1) * n_envs + e), reached)
            elif not terminated:
                place = int((step.cut_NE & ~step.terminated_NE).reshape(-1)[: (m + 1) * n_envs + e].sum())
                np.testing.assert_equal(_row(step.reached, place), reached)
            n_ends += int(dones[e])
        observations = step.observations
    assert n_compared > 40
    assert n_ends > 1


def test_normalisation_is_the_one_in_force_after_member_0s_step() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Camera("vector")] * 2))
    twin = VecNormalize(DummyVecEnv([lambda: Camera("vector")] * 2))
    groups = Groups(env, 4, 3)
    for one in (env, twin):
        one.seed(0)
    observations, _ = env.reset(), twin.reset()
    groups.start(True, None)
    rng = np.random.default_rng(0)
    for _ in range(30):
        groups.observations(observations)
        actions = rng.integers(4, size=(4, 2))
        actions[1] = actions[0]
        ages = groups._age_E.copy()
        step = groups.step(actions)
        truth = twin.step(actions[0])
        np.testing.assert_array_equal(step.observations, truth[0])
        np.testing.assert_array_equal(step.rewards, truth[1])
        for e in np.flatnonzero(ages == 0):  # sibling 1 does what member 0 does
            assert step.rewards_NE[1, e] == step.rewards_NE[0, e]
        observations = step.observations
    for name in ("obs_rms", "ret_rms"):
        mine, theirs = getattr(env, name), getattr(twin, name)
        np.testing.assert_array_equal(mine.mean, theirs.mean)
        np.testing.assert_array_equal(mine.var, theirs.var)
        assert mine.count == theirs.count
    np.testing.assert_array_equal(env.returns, twin.returns)


def _learning(env: Any) -> VecEnv:
    return VecNormalize(env, norm_obs_keys=["vector"])


@pytest.mark.parametrize("chain", [(_stack, _dict_normalize), (_stack, _learning), (_stack, _learning, VecMonitor)], ids=_name)
def test_free_siblings_are_envs_like_any_other_to_stacks_and_statistics(chain: tuple[Wrap, ...]) -> None:
    env, twin = _make("dict", chain), _make("dict", chain, n_envs=6)
    groups: Any = Groups(env, 3, "free")
    env.seed(9)
    twin.seed(9)
    observations: Any = env.reset()
    theirs: Any = twin.reset()
    groups.start(True, 9)
    observations = groups.first_observations(observations)
    rng = np.random.default_rng(0)
    for _ in range(40):
        mine = groups.observations(observations)
        np.testing.assert_array_equal(mine["image"], theirs["image"])
        np.testing.assert_allclose(mine["vector"], theirs["vector"], rtol=1e-6, atol=1e-6)
        actions = rng.integers(4, size=(3, 2))
        step = groups.step(actions)
        theirs, rewards, dones, infos = twin.step(actions.reshape(-1))
        np.testing.assert_allclose(step.rewards_NE.reshape(-1), rewards, rtol=1e-6)
        np.testing.assert_array_equal(step.cut_NE.reshape(-1), dones)
        truncated = [info["TimeLimit.truncated"] for info in infos]
        np.testing.assert_array_equal((step.cut_NE & ~step.terminated_NE).reshape(-1), truncated)
        for place, index in enumerate(np.flatnonzero(truncated)):
            for key, seen in infos[index]["terminal_observation"].items():
                np.testing.assert_allclose(step.reached[key][place], seen, rtol=1e-6, atol=1e-6)
        observations = step.observations


def test_an_outer_normalisation_learns_what_the_inner_one_gives() -> None:
    inner = VecNormalize(DummyVecEnv([walk]), norm_obs=False)
    outer = VecNormalize(inner, norm_reward=True)
    inner.reset()
    inner.ret_rms.var = np.array(4.0)
    inner.ret_rms.count = 1e12  # nothing moves it
    stages = stages_of(outer, 2)
    before = outer.ret_rms.mean.copy()
    learn_from_free(stages, np.zeros((2, 2), np.float32), np.array([8.0, 4.0]), np.zeros(0, int), None)
    assert before == 0
    assert float(outer.ret_rms.mean) == pytest.approx(3.0, rel=1e-3)  # of 8 / 2 and 4 / 2
