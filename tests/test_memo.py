"""What stands for what, while a copy is made and after it."""

import gc
import weakref
from typing import Any

from sb3_hybrid_grpo.branching.memo import Memo


class Part:
    """Can be referred to weakly."""


def test_parts_are_known_until_they_are_forgotten_and_containers_to_the_next_copy() -> None:
    part, array, made_part, made_array = Part(), [1], Part(), [2]
    memo = Memo(None)
    assert memo.made(part) is None and memo.before(part) is None
    assert memo.remember(part, made_part) is made_part and memo.keep(array, made_array) is made_array
    assert memo.made(part) is made_part and memo.made(array) is made_array and memo.before(array) is None
    memo.forget()
    assert memo.made(part) is None and memo.made(array) is None
    later = Memo(memo)
    assert later.before(array) is made_array and later.before(part) is None and later.made(array) is None
    later.forget()
    assert later.before(array) is None
    assert Memo(later).before(array) is None, "the copy after it had no such container"


def test_an_id_stays_that_of_one_original() -> None:
    memo = Memo(None)
    originals: list[Any] = [Part() for _ in range(2)]
    seen = [weakref.ref(one) for one in originals]
    memo.remember(originals[0], 1)
    memo.keep(originals[1], [])
    originals.clear()
    gc.collect()
    assert all(one() is not None for one in seen)
    memo.forget()
    gc.collect()
    assert seen[0]() is None, "what is no container is not kept for longer than needed"
    assert seen[1]() is not None
