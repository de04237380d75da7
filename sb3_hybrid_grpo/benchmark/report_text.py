"""How a comparison's report writes numbers, tables and settings in Markdown."""

import re
from collections.abc import Sequence
from typing import Any

from sb3_hybrid_grpo.benchmark.statistics import Estimate


def scores(values: Sequence[float]) -> list[str]:
    """
    Write rewards.

    :param values: The rewards.
    :return: All with as many digits as matter for the largest.
    """
    largest = max(abs(value) for value in values)
    digits = 0 if largest >= 1000 else 1 if largest >= 10 else 2 if largest >= 1 else 3
    return [f"{round(value, digits) + 0.0:,.{digits}f}" for value in values]  # + 0.0: no minus before a zero


def interval(estimate: Estimate) -> str:
    """
    Write an estimate.

    :param estimate: The estimate.
    :return: The value with its interval.
    """
    if estimate.interval is None:
        return f"{scores([estimate.value])[0]} (too few seeds)"
    value, low, high = scores([estimate.value, *estimate.interval])
    return f"{value} [{low}, {high}]"


def steps(value: float | None, none: str = "not reached") -> str:
    """
    Write a number of steps.

    :param value: The number; None for a score that was not reached.
    :param none: What to write for that.
    :return: In thousands where it is long.
    """
    if value is None:
        return none
    return f"{value / 1000:,.0f}k" if value >= 10_000 else f"{value:,.0f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    Write a table.

    :param header: Names of the columns.
    :param rows: The cells.
    :return: Markdown.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def anchor(heading: str) -> str:
    """
    Find the address of a heading.

    :param heading: The heading.
    :return: What GitHub makes of it.
    """
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def plural(count: int, noun: str) -> str:
    """
    Count things.

    :param count: How many.
    :param noun: One of them.
    :return: In words.
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def plain(value: Any) -> str:
    """
    Write a value of a JSON.

    :param value: The value.
    :return: Without its syntax.
    """
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {plain(one)}" for key, one in value.items()) + ")"
    if isinstance(value, list):
        return " and ".join(plain(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
