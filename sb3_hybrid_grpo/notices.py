"""Notices to the user that never stop a training."""

import inspect
import sys
import traceback
import warnings


def notice(message: str) -> None:
    """Warn at the line of the user's call: the caller of this package's outermost frame. Never raise."""
    frames = traceback.walk_stack(inspect.currentframe())
    names = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    level = max(depth for depth, name in enumerate(names, start=2) if name.startswith("sb3_hybrid_grpo."))
    try:
        warnings.warn(message, UserWarning, stacklevel=level)
    except UserWarning:
        print(f"UserWarning: {message}", file=sys.stderr)
