"""Engines for single objects whose state is not in Python attributes."""

import array
import ctypes
import random
import sys
from typing import Any

import numpy as np

from sb3_hybrid_grpo.branching.protocol import ObjectEngine


class PCG64Engine:
    """
    numpy's default generator, through its raw state: a save costs a fourth of one through ``bit_generator.state``.

    numpy documents ``ctypes.state_address`` as the address of the C struct
    ``{pcg64_random_t *state; int has_uint32; uint32_t uinteger;}``, with 32 bytes behind the pointer.
    """

    @staticmethod
    def readable(generator: np.random.Generator) -> bool:
        """
        Check the layout against the public state.

        :param generator: A generator
        :return: Whether its raw state is where this engine looks for it
        """
        bit_generator = generator.bit_generator
        if type(bit_generator) is not np.random.PCG64:
            return False
        public = bit_generator.state
        expected = {public["state"]["state"], public["state"]["inc"]}
        (low, high), tail = PCG64Engine._addresses(generator)
        halves = [ctypes.string_at(address, 16) for address in (low, high)]
        found = [{int.from_bytes(h, "little") for h in halves}, {_swapped(h) for h in halves}]
        counters = (public["has_uint32"], public["uinteger"])
        return expected in found and counters == tuple(np.frombuffer(ctypes.string_at(tail, 8), dtype=np.uint32))

    @staticmethod
    def _addresses(generator: np.random.Generator) -> tuple[tuple[int, int], int]:
        address = generator.bit_generator.ctypes.state_address
        state = ctypes.c_void_p.from_address(address).value
        if state is None:
            raise RuntimeError("numpy's PCG64 has no state")
        return (state, state + 16), address + 8

    def save(self, obj: np.random.Generator, previous: Any) -> tuple[int, bytes, int, bytes]:
        if previous is None:
            (state, _), tail = self._addresses(obj)
        else:
            state, _, tail, _ = previous
        return state, ctypes.string_at(state, 32), tail, ctypes.string_at(tail, 8)

    def restore(self, obj: np.random.Generator, state: tuple[int, bytes, int, bytes]) -> None:
        address, contents, tail, counters = state
        ctypes.memmove(address, contents, 32)
        ctypes.memmove(tail, counters, 8)


def _swapped(half: bytes) -> int:
    """The 128-bit number as compilers without such a type store it: high word first."""
    return int.from_bytes(half[8:] + half[:8], "little")


class GeneratorEngine:
    """Any ``numpy.random.Generator``, through its public state."""

    def save(self, obj: np.random.Generator, previous: Any) -> Any:
        return obj.bit_generator.state

    def restore(self, obj: np.random.Generator, state: Any) -> None:
        obj.bit_generator.state = state


class BitGeneratorEngine:
    """A numpy bit generator held without its ``Generator``."""

    def save(self, obj: np.random.BitGenerator, previous: Any) -> Any:
        return obj.state

    def restore(self, obj: np.random.BitGenerator, state: Any) -> None:
        obj.state = state


class RandomStateEngine:
    """numpy's legacy ``RandomState``."""

    def save(self, obj: np.random.RandomState, previous: Any) -> Any:
        return obj.get_state(legacy=False)

    def restore(self, obj: np.random.RandomState, state: Any) -> None:
        obj.set_state(state)


class PythonRandomEngine:
    """Python's own ``random.Random``."""

    def save(self, obj: random.Random, previous: Any) -> Any:
        return obj.getstate()

    def restore(self, obj: random.Random, state: Any) -> None:
        obj.setstate(state)


class ArrayArrayEngine:
    """``array.array``."""

    def save(self, obj: "array.array[Any]", previous: Any) -> Any:
        return obj[:]

    def restore(self, obj: "array.array[Any]", state: Any) -> None:
        obj[:] = state


class MujocoEngine:
    """
    MuJoCo's ``MjData``, all of it: observations and rewards read derived arrays (``xpos``, ``cinert``, …) that lag behind
    ``qpos``, so that none of MuJoCo's own state signatures (``mjSTATE_*``) is exact for every env.
    """

    def save(self, obj: Any, previous: Any) -> Any:
        import mujoco

        copy = mujoco.MjData(obj.model) if previous is None else previous
        mujoco.mj_copyData(copy, obj.model, obj)
        return copy

    def restore(self, obj: Any, state: Any) -> None:
        import mujoco

        mujoco.mj_copyData(obj, obj.model, state)


class OldMujocoEngine:
    """``MjData`` before mujoco 3.5 gave Python ``mj_copyData``: the integration state and every array of fixed size."""

    def save(self, obj: Any, previous: Any) -> Any:
        import mujoco

        spec = mujoco.mjtState.mjSTATE_INTEGRATION
        integration = np.empty(mujoco.mj_stateSize(obj.model, spec))
        mujoco.mj_getState(obj.model, obj, integration, spec)
        return integration, {name: getattr(obj, name).copy() for name in self._fixed_arrays(obj)}

    def restore(self, obj: Any, state: Any) -> None:
        import mujoco

        integration, arrays = state
        mujoco.mj_setState(obj.model, obj, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
        for name, contents in arrays.items():
            getattr(obj, name)[...] = contents

    @staticmethod
    def _fixed_arrays(data: Any) -> list[str]:
        # constraints (efc_*, iefc_*) and contacts live in an arena and change their size with every step
        names = [name for name in dir(data) if not name.startswith(("_", "efc_", "iefc_", "contact"))]
        return [name for name in names if isinstance(getattr(data, name, None), np.ndarray)]


def engine_of(obj: Any) -> ObjectEngine | None:
    """
    Find the engine of an object. The place to add a simulator of one's own to.

    :param obj: The object
    :return: Its engine, or None if it has none
    """
    if isinstance(obj, np.random.Generator):
        return PCG64Engine() if sys.byteorder == "little" and PCG64Engine.readable(obj) else GeneratorEngine()
    for kind, engine in _ENGINES.items():
        if isinstance(obj, kind):
            return engine
    if type(obj).__name__ == "MjData" and type(obj).__module__.startswith("mujoco"):
        import mujoco

        return MujocoEngine() if hasattr(mujoco, "mj_copyData") else OldMujocoEngine()
    return None


_ENGINES: dict[type, ObjectEngine] = {
    np.random.BitGenerator: BitGeneratorEngine(),
    np.random.RandomState: RandomStateEngine(),
    random.Random: PythonRandomEngine(),
    array.array: ArrayArrayEngine(),
}
