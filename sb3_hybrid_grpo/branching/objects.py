"""Cells of single objects whose state is not in Python attributes: generators of random numbers, simulators."""

import array
import ctypes
import random
import sys
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.cells import OpaqueCell
from sb3_hybrid_grpo.branching.classes import OutsideError
from sb3_hybrid_grpo.branching.mujoco_state import is_mujoco, mujoco_cell
from sb3_hybrid_grpo.branching.protocol import Cell


class PCG64Cell(OpaqueCell):
    """
    numpy's default generator, through its raw state: a twentieth of the cost of ``bit_generator.state``.

    numpy documents ``ctypes.state_address`` as the address of the C struct
    ``{pcg64_random_t *state; int has_uint32; uint32_t uinteger;}``, with 32 bytes behind the pointer.

    :param generator: The generator
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator  # keeps the memory alive
        address = generator.bit_generator.ctypes.state_address
        state = ctypes.c_void_p.from_address(address).value
        if state is None:
            raise RuntimeError("numpy's PCG64 has no state")
        self.numbers = (ctypes.c_char * 32).from_address(state)
        self.counters = (ctypes.c_char * 8).from_address(address + 8)

    @classmethod
    def readable(cls, generator: np.random.Generator) -> bool:
        """
        Check the layout against the public state.

        :param generator: A generator
        :return: Whether its raw state is where this cell looks for it
        """
        bit_generator = generator.bit_generator
        if type(bit_generator) is not np.random.PCG64 or sys.byteorder != "little":
            return False
        public = bit_generator.state
        cell = cls(generator)
        halves = (cell.numbers.raw[:16], cell.numbers.raw[16:])
        # compilers without a type of 128 bits store the high word first
        found = [{int.from_bytes(h, "little") for h in halves}, {int.from_bytes(h[8:] + h[:8], "little") for h in halves}]
        counters = (public["has_uint32"], public["uinteger"])
        return {public["state"]["state"], public["state"]["inc"]} in found and counters == tuple(
            np.frombuffer(cell.counters.raw, dtype=np.uint32)
        )

    def save(self, previous: Any) -> tuple[bytes, bytes]:
        return self.numbers.raw, self.counters.raw

    def restore(self, contents: tuple[bytes, bytes]) -> None:
        self.numbers.raw, self.counters.raw = contents


class GeneratorCell(OpaqueCell):
    """
    Any ``numpy.random.Generator``, or a bit generator without one, through its public state.

    :param generator: The generator
    """

    def __init__(self, generator: "np.random.Generator | np.random.BitGenerator") -> None:
        self.generator = generator
        self.bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator

    def save(self, previous: Any) -> Any:
        return self.bits.state

    def restore(self, contents: Any) -> None:
        self.bits.state = contents


class SeedSequenceCell(OpaqueCell):
    """
    What a generator spawns others from.

    :param sequence: The seed sequence
    """

    def __init__(self, sequence: np.random.SeedSequence) -> None:
        self.sequence: Any = sequence

    def save(self, previous: Any) -> int:
        spawned: int = self.sequence.n_children_spawned
        return spawned

    def restore(self, contents: int) -> None:
        one = self.sequence
        if one.n_children_spawned != contents:  # not writable, but pickle writes it
            one.__setstate__((one.entropy, contents, one.pool, one.pool_size, one.spawn_key))


class RandomStateCell(OpaqueCell):
    """
    numpy's legacy ``RandomState``.

    :param generator: The generator
    """

    def __init__(self, generator: np.random.RandomState) -> None:
        self.generator = generator

    def save(self, previous: Any) -> Any:
        return self.generator.get_state(legacy=False)

    def restore(self, contents: Any) -> None:
        self.generator.set_state(contents)


class PythonRandomCell(OpaqueCell):
    """
    Python's own ``random.Random``.

    :param generator: The generator
    """

    def __init__(self, generator: random.Random) -> None:
        if isinstance(generator, random.SystemRandom):
            raise OutsideError(
                "the operating system's random numbers, which cannot be drawn twice", "Draw random numbers from self.np_random"
            )
        self.generator = generator

    def save(self, previous: Any) -> Any:
        return self.generator.getstate()

    def restore(self, contents: Any) -> None:
        self.generator.setstate(contents)


class NumbersCell(OpaqueCell):
    """
    ``array.array`` or ``bytearray``.

    :param obj: The array
    """

    def __init__(self, obj: Any) -> None:
        self.obj = obj

    def save(self, previous: Any) -> Any:
        return self.obj[:]

    def restore(self, contents: Any) -> None:
        self.obj[:] = contents


class RecordCell(OpaqueCell):
    """
    A row of a structured array, which shares the array's memory.

    :param record: The row
    """

    def __init__(self, record: np.void) -> None:
        if record.dtype.hasobject:
            raise TypeError("a record that refers to Python objects")
        self.record: Any = record

    def save(self, previous: Any) -> Any:
        return self.record.copy()

    def restore(self, contents: Any) -> None:
        for name in self.record.dtype.names or ():
            self.record[name] = contents[name]


def has_cell(kind: type) -> bool:
    """
    :param kind: The type of an object
    :return: Whether Python cannot see its state, and :func:`cell_of` knows it
    """
    return issubclass(kind, (np.random.Generator, *_CELLS)) or is_mujoco(kind, "MjData")


def cell_of(obj: Any) -> Cell:
    """
    Make the cell of an object whose state Python cannot see, unless an engine is registered for its type.

    :param obj: The object, of a type that :func:`has_cell`
    :return: Its cell
    :raises TypeError: if its state cannot be copied
    """
    kind = type(obj)
    if issubclass(kind, np.random.Generator):
        return PCG64Cell(obj) if PCG64Cell.readable(obj) else GeneratorCell(obj)
    if is_mujoco(kind, "MjData"):
        return mujoco_cell(obj)
    cell: Cell = next(cell for base, cell in _CELLS.items() if issubclass(kind, base))(obj)
    return cell


_CELLS: dict[type, Any] = {
    np.random.BitGenerator: GeneratorCell,
    np.random.SeedSequence: SeedSequenceCell,
    np.random.RandomState: RandomStateCell,
    random.Random: PythonRandomCell,
    array.array: NumbersCell,
    bytearray: NumbersCell,
    np.void: RecordCell,
}
