"""Box2D envs are branched exactly, and a world that is not what is known is refused."""

import contextlib
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import InPlaceEngine, box2d_layout, make_branchable
from sb3_hybrid_grpo.branching.box2d import WorldCell, memory_of
from sb3_hybrid_grpo.branching.engines import EngineRefusal
from sb3_hybrid_grpo.errors import BranchingError
from tests.stateful_envs import play

Box2D = pytest.importorskip("Box2D")
pytest.importorskip("pygame")
from tests.box2d_envs import Crowd, interrupted  # noqa: E402


def lander(limit: int = 70, **kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make("LunarLander-v3", max_episode_steps=limit, **kwargs)


@pytest.mark.parametrize(
    ("make", "n_steps"),
    [
        (lander, 500),
        (lambda: lander(continuous=True, enable_wind=True), 300),
        (lambda: gym.make("LunarLanderContinuous-v3"), 300),
        (lambda: gym.make("BipedalWalker-v3", max_episode_steps=60), 200),
        (lambda: gym.make("BipedalWalkerHardcore-v3", max_episode_steps=60), 80),
        (lambda: gym.make("CarRacing-v3", max_episode_steps=12), 15),
    ],
    ids=["lander", "wind", "continuous", "walker", "hardcore", "car"],
)
def test_an_env_goes_on_like_a_twin_that_was_never_branched(make: Callable[[], gym.Env[Any, Any]], n_steps: int) -> None:
    env, twin = make(), make()
    for one in (env, twin):
        one.reset(seed=5)
    engine, space = InPlaceEngine(env), make().action_space
    space.seed(0)
    resets = 0
    for t in range(n_steps):
        snapshot = engine.save()
        actions = [space.sample() for _ in range(3)]
        truth = play(env, actions)
        engine.restore(snapshot)
        play(env, [space.sample() for _ in range(3)])
        if t % 50 == 49:
            env.reset(seed=t)
        engine.restore(snapshot)
        assert play(env, actions) == truth
        engine.restore(snapshot)
        seen = play(env, actions[:1])
        assert seen == play(twin, actions[:1]), f"step {t}"
        resets += len(seen) - 1
    assert resets > 0


@pytest.mark.parametrize("copyable", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda: lander(enable_wind=True), lambda: gym.make("BipedalWalker-v3", max_episode_steps=50)],
    ids=["lander", "walker"],
)
def test_siblings_live_the_lives_of_envs_of_their_own(
    make: Callable[[], gym.Env[Any, Any]], copyable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not copyable:
        monkeypatch.setattr("sb3_hybrid_grpo.branching.wrapper.copies_are_exact", lambda env, engine: False)
    horizon, n_siblings = 64, 3
    env, space = make_branchable(make()), make().action_space
    space.seed(0)
    branching: Any = env
    env.reset(seed=3)
    history: list[Any] = []
    for fork in range(2):
        lives: list[list[Any]] = [list(history) for _ in range(n_siblings)]
        saw: list[Any] = [[] for _ in range(n_siblings)]
        for t in range(horizon):
            actions = [space.sample() for _ in range(n_siblings + 1)]
            forks = np.full(n_siblings, t == 0)
            steps = branching.step_siblings(np.array(actions[1:]), forks, True, True)
            for m in range(n_siblings):
                lives[m].append(actions[m + 1])
                one = (steps.observations[m].tolist(), steps.rewards[m], steps.terminated[m], steps.truncated[m])
                saw[m] += [one, steps.resets[m].tolist()] if m in steps.resets else [one]
            history.append(actions[0])
            play(env, actions[:1])
        for m in range(n_siblings):
            twin = make()
            twin.reset(seed=3)
            assert play(twin, lives[m])[-len(saw[m]) :] == saw[m], f"fork {fork}, sibling {m}"
    twin = make()
    twin.reset(seed=3)
    play(twin, history)
    assert play(env, actions) == play(twin, actions)


@pytest.mark.parametrize("horizon", [1, 8, "free"])
def test_training(horizon: Any) -> None:
    small: dict[str, Any] = {"n_steps": 16, "batch_size": 64, "n_epochs": 1, "seed": 0}
    model = HybridGRPO("MlpPolicy", lander(limit=10), branch_horizon=horizon, **small).learn(32)
    assert model.num_simulator_steps == 128


def test_bodies_come_and_go_and_memory_grows_on_every_branch() -> None:
    env, twin = gym.wrappers.TimeLimit(Crowd(), 500), gym.wrappers.TimeLimit(Crowd(), 500)
    for one in (env, twin):
        one.reset(seed=1)
    engine, rng = InPlaceEngine(env), np.random.default_rng(0)
    kept: list[Any] = []
    sizes = set()
    for t in range(80):
        snapshot = engine.save()
        branches = []
        for _ in range(3):
            engine.restore(snapshot)
            play(env, rng.integers(3, size=3).tolist())
            actions = rng.integers(3, size=3).tolist()
            branches.append((engine.save(), actions, play(env, actions)))
            sizes.add(len(WorldCell(env.unwrapped.world).memory.save().chunks))  # type: ignore[attr-defined]
        kept = (kept + branches)[-9:]  # branches of other states, larger and smaller ones
        for start, actions, truth in kept if t % 8 == 7 else branches:
            engine.restore(start)
            assert play(env, actions) == truth
        engine.restore(snapshot)
        actions = rng.integers(3, size=2).tolist()
        assert play(env, actions) == play(twin, actions)
    assert len(sizes) > 2


def test_an_array_at_the_same_place_may_be_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes freed and allocated anew may lie where a larger array lay."""
    env = Crowd()
    env.reset(seed=1)
    made: list[Any] = []
    memory = memory_of(env.world)
    image = memory.save()
    monkeypatch.setattr(memory, "_make_room", made.append)
    memory.restore(image)
    assert not made
    memory.numbers[box2d_layout.NODE_CAPACITY].value -= 1
    memory.restore(image)
    assert made == [image]


def test_what_siblings_give_to_a_world_is_let_go_of() -> None:
    class Mark:
        pass

    env = Crowd()
    env.reset(seed=0)
    engine, given = InPlaceEngine(env), Mark()
    snapshot = engine.save()
    count = sys.getrefcount(given)
    for _ in range(5):
        new = env.world.CreateDynamicBody(position=(0, 5), userData=given, fixtures=env.definition)
        new.fixtures[0].userData = given
        joint = env.world.CreateRevoluteJoint(bodyA=env.ground, bodyB=new, anchor=(0, 5), userData=given)
        memory = memory_of(env.world)
        assert memory._user_data() == memory._walk().user_data == [id(given)] * 3
        del new, joint
        engine.restore(snapshot)
        assert sys.getrefcount(given) == count


def test_the_world_keeps_what_it_refers_to() -> None:
    env = Crowd()
    env.reset(seed=0)
    mark = weakref.WeakSet[Any]()

    class Mark:
        pass

    one, two = Mark(), Mark()
    mark.update([one, two])
    env.ground.userData = one
    counts = sys.getrefcount(one), sys.getrefcount(two)
    engine = InPlaceEngine(env)
    snapshot: Any = engine.save()
    for _ in range(20):
        env.ground.userData = two
        engine.restore(snapshot)
        env.world.DestroyBody(env.ground)
        engine.restore(snapshot)
    assert env.ground.userData is one
    snapshot = None
    del engine
    assert (sys.getrefcount(one), sys.getrefcount(two)) == counts
    del two
    gc.collect()
    assert list(mark) == [one]


def test_a_world_is_forgotten_when_it_is_gone() -> None:
    env = Crowd()
    gone = weakref.ref(env.world)
    engine = InPlaceEngine(env)
    snapshots = [engine.save() for _ in range(3)]
    engine.restore(snapshots[0])
    del env, engine, snapshots
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "name",
    ["BODY_NEXT", "JOINT_USER_DATA", "CHUNKS", "NODES", "CONTACTS", "GRAVITY", "SIZE", "FIXTURE_SHAPE", "FIXTURE_USER_DATA"],
)
def test_another_layout_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = lander()
    env.reset(seed=0)
    box2d_layout._check_library.cache_clear()
    monkeypatch.setattr(box2d_layout, name, getattr(box2d_layout, name) + 64)
    with pytest.raises(EngineRefusal, match=r"is not laid out as in version 2\.3\.10.*should be"):
        WorldCell(env.unwrapped.world)  # type: ignore[attr-defined]


def test_what_lies_outside_of_the_worlds_memory_is_refused() -> None:
    env = Crowd()
    env.world.CreateStaticBody(shapes=Box2D.b2ChainShape(vertices_chain=[(0, 0), (1, 0), (2, 1)]))
    with pytest.raises(BranchingError, match=r"Crowd\.world: it has a b2ChainShape"):
        InPlaceEngine(env)
    env = Crowd()
    env.definition.userData = [1]
    with pytest.raises(BranchingError, match=r"Crowd\.definition: it is a definition with userData"):
        InPlaceEngine(env)
    env = Crowd()
    env.shape = Box2D.b2ChainShape(vertices_chain=[(0, 0), (1, 0), (2, 1)])  # type: ignore[attr-defined]
    with pytest.raises(BranchingError, match=r"Crowd\.shape holds a Box2D\.Box2D\.b2ChainShape"):
        InPlaceEngine(env)


def test_a_restore_that_is_broken_off_can_be_repeated() -> None:
    env, twin = Crowd(), Crowd()
    for one in (env, twin):
        one.reset(seed=0)
        play(one, [1, 2])
    engine = InPlaceEngine(env)
    n_calls = finished = 0
    while not finished:
        snapshot = engine.save()
        play(env, [2, 1] * n_calls)
        with interrupted(n_calls), contextlib.suppress(KeyboardInterrupt):
            engine.restore(snapshot)
            finished = True
        if not finished:
            engine.restore(snapshot)
        assert play(env, [1, 0]) == play(twin, [1, 0])
        n_calls += 1
    assert n_calls > 10


def test_a_world_has_one_cell_however_many_objects_stand_for_it() -> None:
    env, twin = Crowd(), Crowd()
    for one in (env, twin):
        one.also = one.ground.world  # type: ignore[attr-defined]
        one.reset(seed=0)
    engine = InPlaceEngine(env)
    assert sum(type(cell) is WorldCell for cell in engine._cells) == 1
    for _ in range(5):
        snapshot = engine.save()
        play(env, [1, 2] * 20)
        engine.restore(snapshot)
        assert play(env, [1, 0]) == play(twin, [1, 0])


def test_what_only_the_world_holds_comes_back() -> None:
    env = Crowd()
    env.reset(seed=0)
    env.ground.userData = [0]
    engine = InPlaceEngine(env)
    snapshot = engine.save()
    env.ground.userData.append(1)
    engine.restore(snapshot)
    assert env.ground.userData == [0]
    env.ground.userData = {"new": 1}
    snapshot = engine.save()
    env.ground.userData["new"] = 2
    engine.restore(snapshot)
    assert env.ground.userData == {"new": 1}
