"""Generators that envs share with their process have streams of the env's own; other state outside is seen."""

import random
import types
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching import Groups, fork_env
from sb3_hybrid_grpo.branching.global_state import own_streams, process_wide_generators, surroundings
from tests import outside_envs
from tests.stateful_envs import Noisy

RNG = np.random.default_rng(0)


class Line(gym.Env[Any, Any]):
    """Noise from where a subclass says, from some step of an episode on."""

    first_step = 0

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-99, 99, (1,), np.float64)
        self.action_space = gym.spaces.Discrete(2)
        self.t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1), {}

    def noise(self) -> float:
        raise NotImplementedError

    def step(self, action: Any) -> Any:
        self.t += 1
        seen = self.noise() if self.t > self.first_step else 0.0
        return np.array([seen]), 0.0, False, self.t >= 40, {}


class Numpy(Line):
    def noise(self) -> float:
        return float(np.random.normal())


class Python(Line):
    def noise(self) -> float:
        return random.gauss(0, 1)


class Torch(Line):
    def noise(self) -> float:
        return float(th.randn(()))


class Module(Line):
    def noise(self) -> float:
        return float(RNG.normal())


DRAW = np.random.default_rng(1).normal


class Alias(Line):
    def noise(self) -> float:
        return float(DRAW())


class Default(Line):
    def noise(self, rng: Any = np.random.default_rng(2)) -> float:  # noqa: B008
        return float(rng.normal())


class OfClass(Line):
    """Draws from a space that all envs of the class have."""

    directions = gym.spaces.Box(-1, 1, (), np.float64)

    def noise(self) -> float:
        return float(self.directions.sample())


class Rare(Numpy):
    """Draws late, after any check."""

    first_step = 37


class Indirect(Line):
    """Draws through a library."""

    def noise(self) -> float:
        return float(th.nn.functional.dropout(th.ones(1)).item())


class LateFirst(Line):
    """Has no generator before its first draw, late in an episode."""

    first_step = 30

    def noise(self) -> float:
        return float(self.np_random.normal())


class LateIndirect(Indirect):
    first_step = 30


def share_of_equal_steps(env: Any, n_steps: int = 120) -> float:
    groups = Groups(env, 3, 16)
    last = env.reset()
    groups.start(True, check=True)
    equal = []
    for _ in range(n_steps):
        groups.observations(last)
        np.random.random(3)  # as a training draws
        random.random()
        th.rand(2)
        step = groups.step(np.ones((3, env.num_envs), dtype=int))
        infos = step.infos
        rows = step.new_obs.reshape(3, env.num_envs)
        done = step.dones_NE[0]
        last = step.new_obs[: env.num_envs]
        equal += (rows[1:] == rows[0])[:, ~done].reshape(-1).tolist()
        assert len(infos) == 3
    return float(np.mean(equal))


@pytest.mark.parametrize("n_envs", [1, 2, 4])
@pytest.mark.parametrize(
    "kind", [Numpy, Python, Torch, Module, Alias, Default, Rare, Indirect, LateFirst, LateIndirect, outside_envs.class_space]
)
def test_siblings_see_the_noise_of_shared_generators(kind: Any, n_envs: int) -> None:
    env = DummyVecEnv([kind] * n_envs)
    if kind is outside_envs.class_space:
        assert not make_branchable(kind()).get_wrapper_attr("sibling_maker").forks
        return
    assert share_of_equal_steps(env) == 1.0
    assert not any(one.get_wrapper_attr("sibling_maker").forks for one in env.envs)


def test_a_space_of_a_class_that_is_seeded_later_is_shared_still() -> None:
    env = DummyVecEnv([OfClass] * 2)
    groups, last = Groups(env, 3, 16), env.reset()
    groups.start(True, check=True)
    OfClass.directions.seed(1)  # as another training does with the class's action space
    before = OfClass.directions.np_random.bit_generator.state
    for _ in range(20):
        groups.observations(last)
        rows_NE = groups.step(np.ones((3, 2), dtype=int)).new_obs.reshape(3, 2)
        assert (rows_NE == rows_NE[0]).all()
    assert OfClass.directions.np_random.bit_generator.state == before


@pytest.mark.parametrize("kind", [Numpy, Module])
def test_in_processes_too(kind: Any) -> None:
    env = make_vec_env(kind, 2, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    try:
        assert share_of_equal_steps(env) == 1.0
    finally:
        env.close()


def test_envs_have_different_streams_and_the_first_goes_on_where_the_generator_was() -> None:
    np.random.seed(3)
    expected = np.random.RandomState(3).normal(size=5)
    envs = [make_branchable(Numpy()) for _ in range(2)]
    seen = [[float(env.step(0)[0][0]) for _ in range(5)] for env in envs]
    assert seen[0] == expected.tolist() and seen[1] != seen[0]


@pytest.mark.parametrize("kind", [Numpy, Python, Torch])
@pytest.mark.parametrize("branchable", [False, True])
def test_a_seed_makes_the_same_training_again_in_the_same_envs(kind: Any, branchable: bool) -> None:
    def trained(seed: int) -> Any:
        options: dict[str, Any] = dict(n_steps=64, batch_size=32, branch_horizon=16, branching_check=False)
        model = HybridGRPO("MlpPolicy", env, seed=seed, **options).learn(256)
        return model.policy.value_net.weight.flatten().tolist()

    env = make_vec_env(kind, 2, wrapper_class=make_branchable if branchable else None)
    first, other, again = trained(0), trained(1), trained(0)
    assert first == again != other


def test_another_model_of_the_same_env_does_not_disturb_a_training() -> None:
    env = DummyVecEnv([Numpy])
    arguments: dict[str, Any] = dict(n_steps=256, batch_size=32, branch_horizon=64)
    model = HybridGRPO("MlpPolicy", env, **arguments).learn(256)  # it ends with siblings that fork next at step 80
    HybridGRPO("MlpPolicy", env, **arguments)
    model.learn(512, reset_num_timesteps=False)
    assert not env.get_attr("sibling_maker")[0].forks


def _numpy_state() -> Any:
    state: Any = np.random.get_state()
    return state[1].tolist()


def test_streams_leave_the_generators_alone() -> None:
    generators = process_wide_generators()
    streams = own_streams(generators.values())
    before = [_numpy_state(), random.getstate(), th.get_rng_state().tolist()]
    with streams:
        drawn = np.random.random(), random.random(), float(th.rand(1))
    assert before == [_numpy_state(), random.getstate(), th.get_rng_state().tolist()]
    with streams:
        assert (np.random.random(), random.random(), float(th.rand(1))) != drawn
    with pytest.raises(KeyboardInterrupt), streams:
        np.random.random()
        raise KeyboardInterrupt
    assert before[0] == _numpy_state()


def test_copies_go_on_with_the_generator_where_it_is() -> None:
    env = Numpy()
    env.reset()
    np.random.seed(7)
    siblings = fork_env(env, 2)
    seen = [[float(one.step(0)[0][0]) for _ in range(3)] for one in siblings]
    assert seen[0] == seen[1] == [float(env.step(0)[0][0]) for _ in range(3)]


@pytest.mark.parametrize("depth", [0, 300])
def test_an_object_that_envs_share_is_named_however_long_a_chain_the_env_holds(depth: int) -> None:
    class Shared(Line):
        def __init__(self, rng: Any) -> None:
            super().__init__()
            self.first: Any = None
            for _ in range(depth):
                self.first = types.SimpleNamespace(next=self.first)
            self.rng = rng

        def noise(self) -> float:
            return float(self.rng.normal())

    rng = np.random.default_rng(9)
    with pytest.warns(UserWarning, match=r"Shared\.rng is shared by several envs and changes .*Give each env its own"):
        share_of_equal_steps(DummyVecEnv([lambda: Shared(rng)] * 2), 3)


class Counting(Line):
    """Counts the steps of all envs of the class, and shows the count."""

    steps = 0

    def noise(self) -> float:
        type(self).steps += 1
        return float(self.steps)


class GeneratorToo(Counting):
    """Is forked before anything was played."""

    def reset(self, **keywords: Any) -> Any:
        self.places = (place for place in range(99))
        return super().reset(**keywords)


@pytest.mark.parametrize("kind", [Counting, GeneratorToo])
def test_what_envs_share_outside_of_them_ends_no_training(kind: Any) -> None:
    with pytest.warns(UserWarning, match=r"\(a forked process played .* became .* after a fork\) is shared by several envs"):
        share_of_equal_steps(DummyVecEnv([kind] * 2), 20)


def test_a_count_of_an_env_alone_is_exact() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Each sibling of")
        assert share_of_equal_steps(DummyVecEnv([Counting]), 20) == 1


@pytest.mark.parametrize(("module", "is_library"), [("mujoco", True), ("mujoco.viewer", True), ("mujoco_walker", False)])
def test_a_module_is_a_librarys_by_its_whole_name(module: str, is_library: bool) -> None:
    kind = type("Code", (Noisy,), {"__module__": module, "kept": 1})
    assert (f"{module}.Code.kept" not in surroundings([kind()]).digests()) == is_library


def test_large_tables_of_a_module_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    env: Any = outside_envs.module_global()
    around = surroundings([env, env.change])
    assert "tests.outside_envs.COUNT" in around.digests()
    monkeypatch.setattr(outside_envs, "COUNT", np.zeros(2**20))
    assert "tests.outside_envs.COUNT" not in around.digests()
