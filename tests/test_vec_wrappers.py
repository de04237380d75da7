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
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_hybrid_grpo.branching import Groups
from sb3_hybrid_grpo.branching import register_vec_wrapper, vec_wrappers
from sb3_hybrid_grpo.branching.vec_wrappers import each, stages_of
from tests.toy_envs import FragileWalk

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
    groups.start(True)
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
        next_observations = groups.observations(each(lambda rows: rows[:n_envs], step.new_obs))
        for (m, e), twin in twins.items():
            n_compared += 1
            seen, rewards, dones, infos = twin.step(actions[m + 1])
            cut, terminated = step.cut_NE[m + 1, e], step.terminated_NE[m + 1, e]
            assert step.rewards[m + 1][e] == rewards[e]
            assert terminated == (dones[e] and not infos[e]["TimeLimit.truncated"])
            assert cut or not dones[e]
            reached = infos[e]["terminal_observation"] if dones[e] else _row(seen, e)
            if not cut:
                np.testing.assert_equal(_row(next_observations, (m + 1) * n_envs + e), reached)
            elif not terminated:
                last = step.infos[m + 1][e].get("terminal_observation", _row(step.new_obs, (m + 1) * n_envs + e))
                np.testing.assert_equal(last, reached)
            if dones[e]:
                theirs = {key: value for key, value in infos[e].items() if key != "episode"}
                np.testing.assert_equal(step.infos[m + 1][e], theirs | {"group_member": m + 1})
            n_ends += int(dones[e])
        observations = each(lambda rows: rows[:n_envs], step.new_obs)
    assert n_compared > 40
    assert n_ends > 1


def test_normalisation_is_the_one_in_force_after_member_0s_step() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Camera("vector")] * 2))
    twin = VecNormalize(DummyVecEnv([lambda: Camera("vector")] * 2))
    groups = Groups(env, 4, 3)
    for one in (env, twin):
        one.seed(0)
    observations, _ = env.reset(), twin.reset()
    groups.start(True)
    rng = np.random.default_rng(0)
    for _ in range(30):
        groups.observations(observations)
        actions = rng.integers(4, size=(4, 2))
        actions[1] = actions[0]
        ages = groups._age_E.copy()
        step = groups.step(actions)
        truth = twin.step(actions[0])
        np.testing.assert_array_equal(step.new_obs[:2], truth[0])
        np.testing.assert_array_equal(step.rewards[0], truth[1])
        for e in np.flatnonzero(ages == 0):  # sibling 1 does what member 0 does
            assert step.rewards[1][e] == step.rewards[0][e]
        observations = step.new_obs[:2]
    for name in ("obs_rms", "ret_rms"):
        mine, theirs = getattr(env, name), getattr(twin, name)
        np.testing.assert_array_equal(mine.mean, theirs.mean)
        np.testing.assert_array_equal(mine.var, theirs.var)
        assert mine.count == theirs.count
    np.testing.assert_array_equal(env.returns, twin.returns)


class Doubling(VecEnvWrapper):
    """Doubles observations."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = 2 * info["terminal_observation"]
        return 2 * observations, rewards + 1, dones, infos  # type: ignore[operator]


def test_unknown_vec_env_wrappers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"wrapped in Doubling;.*Known VecEnv wrappers: VecCheckNan, .*VecNormalize"):
        stages_of(VecMonitor(Doubling(DummyVecEnv([FragileWalk]))), 1)


def test_a_subclass_that_overrides_nothing_is_taken_for_its_base() -> None:
    class Mine(VecNormalize):
        pass

    class Other(VecNormalize):
        def step_wait(self) -> Any:
            return super().step_wait()

    assert type(stages_of(Mine(DummyVecEnv([FragileWalk])), 1)[0]) is vec_wrappers.Normalize
    with pytest.raises(ValueError, match="wrapped in Other"):
        stages_of(Other(DummyVecEnv([FragileWalk])), 1)


def test_a_wrapper_without_state_is_applied_to_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vec_wrappers, "_STAGES", dict(vec_wrappers._STAGES))
    register_vec_wrapper(Doubling)
    for kind, chain in (("vector", (Doubling,)), ("vector", (_stack, Doubling, _normalize)), ("vector", (Doubling, _stack))):
        test_siblings_equal_a_twin_that_takes_their_actions(kind, chain)
    with pytest.raises(TypeError, match="must be a subclass of VecEnvWrapper"):
        register_vec_wrapper(DummyVecEnv)  # type: ignore[arg-type]
