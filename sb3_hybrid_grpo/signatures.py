"""Signatures of constructors that pass arguments on."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])


def with_arguments_of(algorithm: type[Any], mixin: type[Any]) -> Callable[[Init], Init]:
    """
    Show a constructor's arguments to those who ask with ``inspect.signature``, as RL Zoo and Optuna's helpers do.

    :param algorithm: The arguments of its constructor come first
    :param mixin: Then those that its constructor takes by name alone
    :return: Decorates ``__init__`` of the class that is made of both
    """

    def decorate(init: Init) -> Init:
        ours = inspect.signature(mixin.__init__).parameters.values()
        named = [one for one in ours if one.kind is inspect.Parameter.KEYWORD_ONLY]
        theirs = inspect.signature(algorithm.__init__).parameters.values()
        init.__signature__ = inspect.Signature([*theirs, *named])  # type: ignore[attr-defined]
        return init

    return decorate
