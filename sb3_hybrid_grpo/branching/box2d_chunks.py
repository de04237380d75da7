"""
The chunks of memory that a Box2D world takes its blocks from, and how much of one has ever been used.

A chunk is divided into blocks of one size. Those that nothing lives in are linked to a list, from which the world takes the
first and to whose front it gives back. In a new chunk each block links to the next one. So a block that was never taken comes
after all that were, its link never changes, and a snapshot need not have it: LunarLander uses a twentieth of its chunks.
"""

import numpy as np

from sb3_hybrid_grpo.branching import box2d_layout as at
from sb3_hybrid_grpo.branching.box2d_layout import MEMORY_START, c_library, memory, read_pointer, words

SPARE = 8
"""How many blocks more count as used, so that marks seldom move."""
SMALLEST_MARKED = 32
"""In smaller blocks there is no room for a mark."""
# Where all that lives in blocks writes when it is made: a body its position, a fixture its body, a proxy its fixture, a shape
# its centre or first vertex, joints and contacts their predecessor.
_PLACE_OF_MARK = 16
_MARK = 0x6B636F6C62776E65


class Chunk:
    """
    A chunk. It is freed when neither the world nor a snapshot has it any more.

    :param address: Where it is
    :param block_size: How large its blocks are, in bytes
    :param first_free: The world's first free block of this size; without it, all of the chunk counts as used
    """

    def __init__(self, address: int, block_size: int, first_free: int = 0) -> None:
        self.address, self.block_size, self.is_listed = address, block_size, True
        self.free = c_library().free  # at the interpreter's end this module may be gone first
        step = block_size >> 3
        n_blocks = at.CHUNK_SIZE // block_size
        place = (address - MEMORY_START) >> 3
        self._links = words()[place : place + n_blocks * step : step]
        self._new_links = address + block_size * np.arange(1, n_blocks + 1, dtype=np.uint64)
        self._new_links[-1] = 0
        new = np.zeros(at.CHUNK_SIZE >> 3, np.uint64)
        new[: n_blocks * step : step] = self._new_links
        self.new = new.tobytes()
        """What it was when nothing had been taken, as far as that matters."""
        self.used = at.CHUNK_SIZE
        """How many bytes may differ from that."""
        self._mark: int | None = None
        if first_free:
            self.look(first_free)

    def __del__(self) -> None:
        if not self.is_listed:  # the world frees those that it lists
            self.free(self.address)

    def has_grown(self) -> bool:
        """Whether the first of the blocks that count as never taken has been taken, and its mark written over."""
        return self._mark is not None and memory()[self._mark] != _MARK

    def look(self, first_free: int) -> None:
        """
        Find the blocks that may have been taken, and mark the first of the others.

        :param first_free: The world's first free block of this size
        """
        taken = np.flatnonzero(self._links != self._new_links)
        index = (int(taken[-1]) + 1 if len(taken) else 0) + SPARE
        self._mark, self.used = None, at.CHUNK_SIZE
        if self.block_size < SMALLEST_MARKED or index >= len(self._links):
            return
        marked, block = self.address + index * self.block_size, first_free
        for _ in range(at.MOST_BLOCKS):
            if block in (marked, 0):
                break
            block = read_pointer(block)
        if block == marked:  # free, and so are all that it leads to
            self.used, self._mark = index * self.block_size, (marked + _PLACE_OF_MARK - MEMORY_START) >> 3
            memory()[self._mark] = _MARK
