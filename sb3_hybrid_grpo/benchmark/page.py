"""Format tables, numbers and settings for pages in Markdown."""

from collections.abc import Sequence
from typing import Any

import pandas as pd


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown, without a newline at its end."""
    frame = pd.DataFrame(rows, columns=list(header))
    return str(frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True))


def scores(*values: float) -> list[str]:
    """Write rewards with one number of digits, chosen by the largest."""
    largest = max(abs(value) for value in values)
    digits = 0 if largest >= 1000 else 1 if largest >= 10 else 2 if largest >= 1 else 3
    return [f"{round(value, digits) + 0.0:,.{digits}f}" for value in values]  # + 0.0: no minus before a zero


def steps(value: float | None, none: str = "not reached") -> str:
    """Write a number of steps, in thousands from 10,000 on; ``none`` for a score that was not reached."""
    if value is None:
        return none
    return f"{value / 1000:,.0f}k" if value >= 10_000 else f"{value:,.0f}"


def plain(value: Any) -> str:
    """Write a JSON value without JSON's syntax."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return " and ".join(plain(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else "none" if value is None else str(value)
