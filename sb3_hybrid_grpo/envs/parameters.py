"""Checks of the envs' constructor arguments, which all raise the same message."""

import math
import numbers
from typing import Any


def check_positive(**arguments: Any) -> None:
    """
    :param arguments: By name, arguments that must be finite numbers above 0
    :raises ValueError: if one is not
    """
    for name, value in arguments.items():
        require(is_finite(value) and value > 0, name, value, "a finite number above 0")


def check_not_negative(**arguments: Any) -> None:
    """
    :param arguments: By name, arguments that must be finite numbers of at least 0
    :raises ValueError: if one is not
    """
    for name, value in arguments.items():
        require(is_finite(value) and value >= 0, name, value, "a finite number of at least 0")


def check_persistence(**arguments: Any) -> None:
    """
    :param arguments: By name, arguments that must be the persistence of a stationary AR(1) process
    :raises ValueError: if one is not
    """
    for name, value in arguments.items():
        needed = "a number from 0 (no memory) to below 1 (at 1 the noise would grow without bound)"
        require(is_finite(value) and 0 <= value < 1, name, value, needed)


def check_count(**arguments: Any) -> None:
    """
    :param arguments: By name, arguments that must be whole numbers of at least 1
    :raises ValueError: if one is not
    """
    for name, value in arguments.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        require(whole and value >= 1, name, value, "a whole number of at least 1")


def require(holds: bool, name: str, value: Any, needed: str) -> None:
    """
    :param holds: Whether the argument's value is allowed
    :param name: The argument's name
    :param value: What was received
    :param needed: The allowed values, for the message
    :raises ValueError: if the value is not allowed
    """
    if not holds:
        raise ValueError(f"Received {name}={value!r}: it must be {needed}. Give such a value, or leave the argument out.")


def is_finite(value: Any) -> bool:
    """
    :param value: Anything
    :return: Whether it is a finite real number
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
