"""
The memory of a Box2D world, saved and put back as it is.

What a ``b2World`` remembers from step to step is more than its bodies and joints show: impulses, contacts, the tree of the
broad phase. All of it lies in the world itself, in the chunks that its bodies, fixtures, shapes, joints and contacts are
allocated in, and in two arrays of the broad phase. The world also counts as a holder of every ``userData``.
"""

import ctypes
import sys
from typing import Any, NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d_layout import c_library
from sb3_hybrid_grpo.branching.memory import MEMORY_START, memory, words

_POINTERS = (at.CHUNKS, at.NODES, at.MOVES, at.PAIRS)
_CAPACITIES = (at.CHUNK_SPACE, at.MOVE_CAPACITY, at.PAIR_CAPACITY)
_KEPT = (*_POINTERS, *_CAPACITIES)
"""What a world keeps when it is written anew: where its arrays are and how large, which may have grown since."""
_FIELDS = (
    *(at.BODY_FIXTURES, at.BODY_NEXT, at.BODY_USER_DATA, at.FIXTURE_NEXT, at.FIXTURE_USER_DATA),
    *(at.JOINT_NEXT, at.JOINT_USER_DATA),
)
_WORDS = tuple((field - MEMORY_START) >> 3 for field in _FIELDS)
"""Where fields are in :func:`memory`, from an eighth of the address of what they belong to."""


class Chunk:
    """
    A chunk of a world's memory. It is freed when neither the world nor a snapshot has it any more.

    :param address: Where it is
    :param is_listed: Whether the world has it, and will free it
    """

    def __init__(self, address: int, is_listed: bool = True) -> None:
        self.address, self.is_listed = address, is_listed
        self.free = c_library().free  # at the interpreter's end this module may be gone first

    def __del__(self) -> None:
        if not self.is_listed:
            self.free(self.address)


class Structure(NamedTuple):
    """Where the pointers are that lead through a world's bodies, fixtures, shapes and joints and to their userData."""

    places: np.ndarray
    values: np.ndarray
    user_data: list[int]
    bodies: list[int]
    fixtures: list[int]
    joints: list[int]

    def holds(self) -> bool:
        """Whether they are all as they were: then there is nothing else to be found."""
        return bool(words()[self.places].tobytes() == self.values.tobytes())


class Image(NamedTuple):
    """The memory of a world."""

    head: bytes
    tail: bytes
    kept: list[int]
    entries: bytes
    chunks: list[tuple[Chunk, bytes]]
    nodes: bytes
    moves: bytes
    structure: Structure
    user_data: list[Any]
    """Held by the image too: the world may let go of them."""


class WorldMemory:
    """
    Saves and restores the memory of one world.

    :param world: The world
    :param is_new: Whether nothing has been made in it yet
    :raises UnknownMemoryError: if its memory is not laid out as expected
    """

    def __init__(self, world: Any, is_new: bool = False) -> None:
        if not is_new:
            at.check_layout(world)
        self.address = a = int(world.this)
        self.pointers = {place: ctypes.c_uint64.from_address(a + place) for place in _POINTERS}
        self.numbers = {
            place: ctypes.c_int32.from_address(a + place) for place in (*_CAPACITIES, at.NODE_CAPACITY, at.N_CHUNKS)
        }
        self._fields: list[Any] = [(self.pointers if place in _POINTERS else self.numbers)[place] for place in _KEPT]
        self.chunks: dict[int, Chunk] = {}
        self._listed: tuple[bytes, list[Chunk]] = b"", []
        """The world's list of chunks as it was last read, and what is in it."""
        self.listed_chunks()
        self.structure = self._walk()
        self._before: tuple[list[int], list[Chunk]] | None = None
        """While it is written: which userData it held and which chunks it listed before."""

    def save(self) -> Image:
        """
        :return: The world as it is now
        :raises UnknownMemoryError: if it has memory elsewhere by now
        """
        a, structure = self.address, self._structure_now()
        self._before = None  # whoever saves a world takes it as it is
        return Image(
            ctypes.string_at(a, at.STACK),
            ctypes.string_at(a + at.FLAGS, at.SIZE - at.FLAGS),
            self._kept(),
            self._entries(),
            [(chunk, ctypes.string_at(chunk.address, at.CHUNK_SIZE)) for chunk in self.listed_chunks()],
            ctypes.string_at(self.pointers[at.NODES].value, at.NODE_SIZE * self.numbers[at.NODE_CAPACITY].value),
            ctypes.string_at(self.pointers[at.MOVES].value, 4 * self.numbers[at.MOVE_CAPACITY].value),
            structure,
            [ctypes.cast(address, ctypes.py_object).value for address in structure.user_data],
        )

    def restore(self, image: Image) -> None:
        """
        Write an image to the world. If that is broken off, it is to be repeated before anything else is done with the world.

        :param image: What the world is to be
        """
        if self._before is None:
            is_known = self.structure.holds()
            self._before = self.structure.user_data if is_known else self._user_data(), self.listed_chunks()
        held, listed = self._before
        wanted, chunks = image.structure.user_data, [chunk for chunk, _ in image.chunks]
        for address in wanted if wanted != held else ():
            ctypes.pythonapi.Py_IncRef(ctypes.cast(address, ctypes.py_object))
        for chunk in chunks if chunks != listed else ():
            chunk.is_listed = True
        self._write_world(image)
        for chunk, contents in image.chunks:
            ctypes.memmove(chunk.address, contents, at.CHUNK_SIZE)
        if chunks != listed:
            self.chunks = {chunk.address: chunk for chunk in chunks}
            self._listed = image.entries, chunks
            for chunk in listed:  # those that are not listed any more are freed with the last snapshot that has them, if any
                chunk.is_listed = chunk.address in self.chunks
        self.structure = image.structure
        self._before = None
        for address in held if wanted != held else ():
            ctypes.pythonapi.Py_DecRef(ctypes.cast(address, ctypes.py_object))

    def listed_chunks(self) -> list[Chunk]:
        """
        :return: The chunks that the world has now
        """
        entries = self._entries()
        if entries != self._listed[0]:
            addresses: list[int] = np.frombuffer(entries, np.uint64)[1::2].tolist()
            for address in addresses:
                if address not in self.chunks:
                    self.chunks[address] = Chunk(address)
            self._listed = entries, [self.chunks[address] for address in addresses]
        return self._listed[1]

    def _write_world(self, image: Image) -> None:
        """Write the world itself and its arrays. Those that have grown since stay as large as they are."""
        kept, head, tail = self._kept(), image.head, image.tail
        if kept != image.kept or self.numbers[at.NODE_CAPACITY].value * at.NODE_SIZE < len(image.nodes):
            self._make_room(image)
            kept = self._kept()
            head, tail = _with(kept, image)
        for address, contents in zip(kept, (image.entries, image.nodes, image.moves)):  # noqa: B905  hot
            ctypes.memmove(address, contents, len(contents))
        ctypes.memmove(self.address, head, at.STACK)
        ctypes.memmove(self.address + at.FLAGS, tail, len(tail))

    def _make_room(self, image: Image) -> None:
        """Make arrays as large as an image's: those of a world that becomes a copy, or that a restore has shrunk."""
        arrays = (
            (at.CHUNKS, at.CHUNK_SPACE, 16, image.entries),
            (at.NODES, at.NODE_CAPACITY, at.NODE_SIZE, image.nodes),
            (at.MOVES, at.MOVE_CAPACITY, 4, image.moves),
        )
        for place, room, size, contents in arrays:
            if size * self.numbers[room].value < len(contents):
                old = self.pointers[place].value
                self.pointers[place].value = c_library().malloc(len(contents))
                self.numbers[room].value = len(contents) // size
                c_library().free(old)  # last: an interrupt in between leaves no pointer to what is freed

    def _kept(self) -> list[int]:
        return [field.value for field in self._fields]

    def _entries(self) -> bytes:
        """The world's list of its chunks: for each, how large its blocks are, and where it is."""
        return ctypes.string_at(self.pointers[at.CHUNKS].value, 16 * self.numbers[at.N_CHUNKS].value)

    def _structure_now(self) -> Structure:
        if not self.structure.holds():
            self.structure = self._walk()
        return self.structure

    def _user_data(self) -> list[int]:
        """What bodies, fixtures and joints hold, in the order of :meth:`_walk`, which takes longer to find more."""
        word, found = memory(), []
        fixtures, next_body, of_body, next_fixture, of_fixture, next_joint, of_joint = _WORDS
        body = word[(self.address + at.BODIES - MEMORY_START) >> 3] >> 3
        while body:
            fixture = word[body + fixtures] >> 3
            while fixture:
                found.append(word[fixture + of_fixture])
                fixture = word[fixture + next_fixture] >> 3
            found.append(word[body + of_body])
            body = word[body + next_body] >> 3
        joint = word[(self.address + at.JOINTS - MEMORY_START) >> 3] >> 3
        while joint:
            found.append(word[joint + of_joint])
            joint = word[joint + next_joint] >> 3
        return [one for one in found if one]

    def _walk(self) -> Structure:
        """Follow the lists of bodies, fixtures and joints."""
        a, word, start = self.address, memory(), MEMORY_START
        bodies, fixtures, joints = [], [], []
        places, user_data = [a + at.BODIES, a + at.JOINTS], []
        body = word[(a + at.BODIES - start) >> 3]
        while body:
            bodies.append(body)
            fixture = word[(body + at.BODY_FIXTURES - start) >> 3]
            while fixture:
                fixtures.append(fixture)
                shape = word[(fixture + at.FIXTURE_SHAPE - start) >> 3]
                at.refuse_chain(shape)
                places += [fixture + at.FIXTURE_NEXT, fixture + at.FIXTURE_SHAPE, shape + at.SHAPE_TYPE]
                user_data.append(fixture + at.FIXTURE_USER_DATA)
                fixture = word[(fixture + at.FIXTURE_NEXT - start) >> 3]
            places += [body + at.BODY_NEXT, body + at.BODY_FIXTURES]
            user_data.append(body + at.BODY_USER_DATA)
            body = word[(body + at.BODY_NEXT - start) >> 3]
        joint = word[(a + at.JOINTS - start) >> 3]
        while joint:
            joints.append(joint)
            places.append(joint + at.JOINT_NEXT)
            user_data.append(joint + at.JOINT_USER_DATA)
            joint = word[(joint + at.JOINT_NEXT - start) >> 3]
        all_places = (np.array(places + user_data) - start) >> 3
        values = words()[all_places]
        held = [one for one in values[len(places) :].tolist() if one]
        return Structure(all_places, values, held, bodies, fixtures, joints)


def _with(kept: list[int], image: Image) -> tuple[bytes, bytes]:
    """An image's head and tail, but for what a world keeps."""
    head, tail = bytearray(image.head), bytearray(image.tail)
    for place, value in zip(_KEPT, kept, strict=True):
        part, start = (head, place) if place < at.STACK else (tail, place - at.FLAGS)
        size = 8 if place in _POINTERS else 4
        part[start : start + size] = value.to_bytes(size, sys.byteorder)
    return bytes(head), bytes(tail)
