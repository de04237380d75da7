"""Signatures of constructors that pass arguments on."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])


def with_arguments_of(algorithm: type[Any], mixin: type[Any]) -> Callable[[Init], Init]:
    """
    Let ``inspect.signature``, which RL Zoo uses, show a constructor's real arguments instead of ``*args, **kwargs``.

    :param algorithm: The arguments of its constructor come first
    :param mixin: The keyword-only arguments of its constructor follow
    :return: A decorator for ``__init__`` of a class that derives from both
    """

    def decorate(init: Init) -> Init:
        ours = inspect.signature(mixin.__init__).parameters.values()
        named = [one for one in ours if one.kind is inspect.Parameter.KEYWORD_ONLY]
        theirs = inspect.signature(algorithm.__init__).parameters.values()
        init.__signature__ = inspect.Signature([*theirs, *named])  # type: ignore[attr-defined]
        return init

    return decorate


def arguments_of(algorithm: type[Any]) -> list[str]:
    """The names of the arguments of a constructor."""
    return list(inspect.signature(algorithm).parameters)


def refuse_unknown(given: Iterable[str], name: str, known: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raise a TypeError if not all given arguments are known, and suggest the closest ones, also among others."""
    if unknown := sorted(set(given) - set(known)):
        names = [*known, *others]
        closest = [match for one in unknown for match in difflib.get_close_matches(one, names, n=1)]
        hint = f" Did you mean {', '.join(closest)}?" if closest else ""
        raise TypeError(f"{name} has no argument {', '.join(unknown)}.{hint}")
