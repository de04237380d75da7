"""Notices to the user that never stop a training."""

import sys
import warnings


def notice(message: str) -> None:
    """
    Warn, and go on where filters turn warnings into exceptions.

    :param message: The text
    """
    try:
        warnings.warn(message, UserWarning, stacklevel=3)
    except UserWarning:
        print(f"UserWarning: {message}", file=sys.stderr)
