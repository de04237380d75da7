"""
The memory of a Box2D world, saved and put back as it is.

What a ``b2World`` remembers from step to step is more than its bodies and joints show: impulses, contacts, the tree of the
broad phase. All of it lies in the world itself, in the chunks that its bodies, fixtures, shapes, joints and contacts are
allocated in, and in two arrays of the broad phase. The world also counts as a holder of every ``userData``.
"""

import ctypes
from typing import Any, NamedTuple

import numpy as np

from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d_layout import c_library, read_pointer, words

# What a world keeps when it is written anew: where its arrays are and how large, which may have grown since
_POINTERS = (at.CHUNKS, at.NODES, at.MOVES, at.PAIRS)
_CAPACITIES = (at.CHUNK_SPACE, at.MOVE_CAPACITY, at.PAIR_CAPACITY)


class Chunk:
    """
    A chunk of a world's memory. It is freed when neither the world nor a snapshot has it any more.

    :param address: Where it is
    """

    def __init__(self, address: int) -> None:
        self.address, self.is_listed = address, True
        self.free = c_library().free  # at the interpreter's end this module may be gone first

    def __del__(self) -> None:
        if not self.is_listed:  # the world frees those that it lists
            self.free(self.address)


class Structure(NamedTuple):
    """Where the pointers are that lead through a world's bodies, fixtures, shapes and joints and to their userData."""

    places: np.ndarray
    values: np.ndarray
    user_data: list[int]

    def holds(self) -> bool:
        """Whether they are all as they were: then there is nothing else to be found."""
        return bool((words()[self.places] == self.values).all())


class Image(NamedTuple):
    """The memory of a world."""

    head: bytes
    tail: bytes
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
    :raises UnknownMemoryError: if its memory is not laid out as expected
    """

    def __init__(self, world: Any) -> None:
        at.check_layout(world)
        self.address = a = int(world.this)
        self.pointers = {place: ctypes.c_uint64.from_address(a + place) for place in _POINTERS}
        self.numbers = {
            place: ctypes.c_int32.from_address(a + place) for place in (*_CAPACITIES, at.NODE_CAPACITY, at.N_CHUNKS)
        }
        self.kept: list[Any] = [*(self.pointers[place] for place in _POINTERS), *(self.numbers[one] for one in _CAPACITIES)]
        self.chunks = {address: Chunk(address) for address in self._listed()}
        self.structure = self._walk()

    def save(self) -> Image:
        """
        :return: The world as it is now
        :raises UnknownMemoryError: if it has memory elsewhere by now
        """
        a, structure = self.address, self._structure_now()
        listed = self._listed()
        for address in listed:
            if address not in self.chunks:
                self.chunks[address] = Chunk(address)
        return Image(
            ctypes.string_at(a, at.STACK),
            ctypes.string_at(a + at.FLAGS, at.SIZE - at.FLAGS),
            self._entries(),
            [(self.chunks[address], ctypes.string_at(address, at.CHUNK_SIZE)) for address in listed],
            ctypes.string_at(self.pointers[at.NODES].value, at.NODE_SIZE * self.numbers[at.NODE_CAPACITY].value),
            ctypes.string_at(self.pointers[at.MOVES].value, 4 * self.numbers[at.MOVE_CAPACITY].value),
            structure,
            [ctypes.cast(address, ctypes.py_object).value for address in structure.user_data],
        )

    def restore(self, image: Image) -> None:
        """
        :param image: What the world is to be
        """
        held = self._structure_now().user_data
        wanted = image.structure.user_data
        for address in wanted if wanted != held else ():
            ctypes.pythonapi.Py_IncRef(ctypes.cast(address, ctypes.py_object))
        if self._entries() != image.entries:  # one that is listed at an address is the image's: that is not free meanwhile
            self._list_only([chunk for chunk, _ in image.chunks])
        self._write_world(image)
        for chunk, contents in image.chunks:
            ctypes.memmove(chunk.address, contents, at.CHUNK_SIZE)
        self.structure = image.structure
        for address in held if wanted != held else ():
            ctypes.pythonapi.Py_DecRef(ctypes.cast(address, ctypes.py_object))

    def _write_world(self, image: Image) -> None:
        """Write the world itself and its arrays. Those that have grown since stay as large as they are."""
        a, nodes = self.address, self.pointers[at.NODES]
        if at.NODE_SIZE * self.numbers[at.NODE_CAPACITY].value < len(image.nodes):  # shrunk by a restore, maybe grown by less
            nodes.value = c_library().realloc(nodes.value, len(image.nodes))
        kept = [field.value for field in self.kept]
        ctypes.memmove(a, image.head, at.STACK)
        ctypes.memmove(a + at.FLAGS, image.tail, len(image.tail))
        for field, value in zip(self.kept, kept):  # noqa: B905  hot
            field.value = value
        for place, contents in ((at.CHUNKS, image.entries), (at.NODES, image.nodes), (at.MOVES, image.moves)):
            ctypes.memmove(self.pointers[place].value, contents, len(contents))

    def _entries(self) -> bytes:
        """The world's list of its chunks: for each, how large its blocks are, and where it is."""
        return ctypes.string_at(self.pointers[at.CHUNKS].value, 16 * self.numbers[at.N_CHUNKS].value)

    def _listed(self) -> list[int]:
        """The addresses of the chunks that the world has now."""
        return np.frombuffer(self._entries(), np.uint64)[1::2].tolist()  # type: ignore[no-any-return]

    def _list_only(self, chunks: list[Chunk]) -> None:
        """The world has these chunks from now on; others are freed with the last snapshot that has them, if any."""
        wanted = {chunk.address: chunk for chunk in chunks}
        for address in self._listed():
            if address not in wanted:
                chunk = self.chunks.get(address) or Chunk(address)
                chunk.is_listed = False
        for chunk in chunks:
            chunk.is_listed = True
        self.chunks = wanted

    def _structure_now(self) -> Structure:
        if not self.structure.holds():
            self.structure = self._walk()
        return self.structure

    def _walk(self) -> Structure:
        """Follow the lists of bodies, fixtures and joints."""
        a = self.address
        places, user_data = [a + at.BODIES, a + at.JOINTS], []
        body = read_pointer(a + at.BODIES)
        while body:
            fixture = read_pointer(body + at.BODY_FIXTURES)
            while fixture:
                shape = read_pointer(fixture + at.FIXTURE_SHAPE)
                at.refuse_chain(shape)
                places += [fixture + at.FIXTURE_NEXT, fixture + at.FIXTURE_SHAPE, shape + at.SHAPE_TYPE]
                user_data.append(fixture + at.FIXTURE_USER_DATA)
                fixture = read_pointer(fixture + at.FIXTURE_NEXT)
            places += [body + at.BODY_NEXT, body + at.BODY_FIXTURES]
            user_data.append(body + at.BODY_USER_DATA)
            body = read_pointer(body + at.BODY_NEXT)
        joint = read_pointer(a + at.JOINTS)
        while joint:
            places.append(joint + at.JOINT_NEXT)
            user_data.append(joint + at.JOINT_USER_DATA)
            joint = read_pointer(joint + at.JOINT_NEXT)
        all_places = (np.array(places + user_data) - at.MEMORY_START) >> 3
        return Structure(all_places, words()[all_places], [held for held in map(read_pointer, user_data) if held])
