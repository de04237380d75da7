"""Cells of generators and simulators: what was drawn or simulated since a save is drawn or simulated again after a restore."""

import array
import random
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_hybrid_grpo.branching.mujoco_state import MujocoCell, OldMujocoCell
from sb3_hybrid_grpo.branching.objects import (
    GeneratorCell,
    PCG64Cell,
    RecordCell,
    SeedSequenceCell,
    cell_of,
    has_cell,
)


def _draw(generator: np.random.Generator) -> list[Any]:
    # integers of 32 bits keep half of a draw of 64 bits for the next one
    return [
        generator.integers(10, dtype=np.uint32),
        generator.normal(),
        generator.random(3).tolist(),
        generator.permutation(5).tolist(),
    ]


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64])
@pytest.mark.parametrize("drawn_before", [0, 1, 2])
def test_generators_draw_again_what_they_drew(bits: type[Any], drawn_before: int) -> None:
    generator = np.random.Generator(bits(5))
    for _ in range(drawn_before):
        generator.integers(10, dtype=np.uint32)
    cell = cell_of(generator)
    assert cell is not None
    contents = cell.save(None)
    first = _draw(generator)
    for _ in range(2):
        _draw(generator)
        cell.restore(contents)
        assert _draw(generator) == first
    assert _draw(generator) != first


def test_the_raw_state_is_used_only_where_its_layout_is_known() -> None:
    assert isinstance(cell_of(np.random.default_rng(0)), PCG64Cell)
    assert isinstance(cell_of(np.random.Generator(np.random.PCG64DXSM(0))), GeneratorCell)


def test_memory_of_an_earlier_save_is_not_shared_with_a_later_one() -> None:
    generator = np.random.default_rng(0)
    cell = PCG64Cell(generator)
    early = cell.save(None)
    first = generator.random()
    late = cell.save(None)
    second = generator.random()
    cell.restore(early)
    assert generator.random() == first
    cell.restore(late)
    assert generator.random() == second


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: random.Random(3), lambda g: [g.gauss(0, 1), g.random(), g.gauss(0, 1)]),
        (lambda: np.random.RandomState(3), lambda g: [g.randn(), g.rand(), g.randn()]),
        (lambda: np.random.PCG64(3), lambda g: g.random_raw(3).tolist()),
        (lambda: np.random.MT19937(3), lambda g: g.random_raw(3).tolist()),
    ],
)
def test_other_sources_of_random_numbers(make: Callable[[], Any], draw: Callable[[Any], Any]) -> None:
    generator = make()
    draw(generator)
    cell = cell_of(generator)
    assert cell is not None
    contents = cell.save(None)
    first = draw(generator)
    draw(generator)
    cell.restore(contents)
    assert draw(generator) == first


def test_spawned_generators_are_spawned_again() -> None:
    generator = np.random.default_rng(4)
    sequence = generator.bit_generator.seed_seq
    cell = SeedSequenceCell(sequence)  # type: ignore[arg-type]
    contents = cell.save(None)
    first = generator.spawn(2)[1].random()
    assert generator.spawn(2)[1].random() != first
    cell.restore(contents)
    assert generator.spawn(2)[1].random() == first


def test_the_operating_systems_random_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="operating system"):
        cell_of(random.SystemRandom())


@pytest.mark.parametrize("obj", [array.array("d", [1.0, 2.0]), bytearray(b"ab")])
def test_arrays_of_numbers_get_their_contents_and_length_back(obj: Any) -> None:
    cell = cell_of(obj)
    assert cell is not None
    contents, before = cell.save(None), obj[:]
    obj.append(7)
    obj[0] = 3
    cell.restore(contents)
    assert obj == before
    obj[1] = 9
    cell.restore(contents)
    assert obj == before


def test_a_record_shares_its_arrays_memory() -> None:
    rows = np.zeros(3, dtype=[("x", float), ("n", int, (2,))])
    record = rows[1]
    cell = cell_of(record)
    assert isinstance(cell, RecordCell)
    contents = cell.save(None)
    record["x"], record["n"] = 4.0, [1, 2]
    assert rows["x"][1] == 4.0
    cell.restore(contents)
    assert rows["x"][1] == 0.0
    assert rows["n"][1].tolist() == [0, 0]


def test_plain_objects_have_no_cell_of_their_own() -> None:
    assert not has_cell(dict)
    assert not has_cell(object)
    assert has_cell(np.random.PCG64)


@pytest.mark.parametrize("kind", [MujocoCell, OldMujocoCell])
@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5"])
def test_mujoco_goes_on_bit_for_bit(kind: type[Any], name: str) -> None:
    pytest.importorskip("mujoco")
    env, twin = gym.make(name).unwrapped, gym.make(name).unwrapped
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.4, 0.4, size=(75, *env.action_space.shape)).astype(np.float32)  # type: ignore[misc]
    for one in (env, twin):
        one.reset(seed=1)
    cell, previous = kind(env.data), None  # type: ignore[attr-defined]
    for t, action in enumerate(actions[:60]):
        if t % 4 == 0:
            previous = cell.save(previous)
            for other in actions[60:]:
                env.step(-other)
            cell.restore(previous)
        got, expected = env.step(action), twin.step(action)
        np.testing.assert_array_equal(got[0], expected[0], err_msg=f"observation of step {t}")
        assert got[1:3] == expected[1:3]
