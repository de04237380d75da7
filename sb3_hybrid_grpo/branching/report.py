"""How an env is branched, whether that is exact, and what it costs."""

import time
import warnings
from statistics import median
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.exactness import RandomActions
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper
from sb3_hybrid_grpo.branching.wrapper_chain import is_recorder, require_env
from sb3_hybrid_grpo.errors import BranchingError

SECONDS, MOST_SECONDS = 0.6, 3.0
"""How long costs are measured, and at most, where a round takes long."""
STEPS = 4
"""Steps of a sibling and of the env in a round."""


class BranchingReport(NamedTuple):
    """What :func:`check_branching` found. Times are in microseconds; ``str()`` of it is for people."""

    env: str
    engine: str
    """What siblings are: "copied", "forked", or "none"."""
    n_samples: int
    branch_horizon: int
    refusal: str = ""
    """Why the env cannot be branched; empty if it can."""
    reasons: tuple[str, ...] = ()
    """Why siblings cannot be copies."""
    step: float = 0.0
    """A step of the env alone."""
    fork: float = 0.0
    """To make a sibling."""
    sibling_step: float = 0.0
    group_step: float = 0.0
    """A step of all members, with all that branching costs."""
    slow_down: float = 0.0
    """What a step of the group costs, over as many plain steps: the median of ratios measured in turn."""

    @property
    def is_exact(self) -> bool:
        """Whether the env can be branched: only what was shown to be exact is."""
        return not self.refusal

    @property
    def hint(self) -> str:
        """What would make it faster; empty if little would."""
        if self.engine == "forked":
            return (
                "forks cost milliseconds. Say how the simulator is copied (register_copier), or saved and restored "
                "(register_engine, or save_state() and restore_state(state) of the env)"
            )
        if self.is_exact and self.branch_horizon < 16 and self.fork > 2 * self.step:
            return (
                "a copy costs more than two steps. Say which large tables never change: table.flags.writeable = False for an "
                "array, declare_constant for an attribute"
            )
        return ""

    def __str__(self) -> str:
        if not self.is_exact:
            return self.refusal
        siblings = {"copied": "live copies of the env"}.get(self.engine, "processes forked from the env's")
        lines = [
            f"{self.env} is branched exactly",
            f"  siblings   {siblings}",
            f"  step       {self.step:.1f} µs",
            f"  fork       {self.fork:.1f} µs",
            f"  slow-down  {self.slow_down:.2f}: {self.n_samples} members, branch_horizon={self.branch_horizon}, take "
            f"{self.group_step:.1f} µs a step, {self.n_samples} plain steps {self.n_samples * self.step:.1f} µs",
            *(f"  no copies  {reason}" for reason in self.reasons),
            *([f"  hint       {self.hint}"] if self.hint else []),
        ]
        return "\n".join(lines)


def check_branching(env: gym.Env[Any, Any], n_samples: int = 4, branch_horizon: int = 64) -> BranchingReport:
    """
    Find out how an env is branched, whether that is exact, and what it costs. The env is reset and played; its recorders
    (``Monitor`` and its like) see nothing of it.

    :param env: The env
    :param n_samples: N, the members of a group
    :param branch_horizon: K, the steps between two forks
    :return: The report
    :raises TypeError: for something else than an env, such as its id
    :raises ValueError: if one of the numbers is no whole number of at least 1
    """
    require_env(env)
    for name, value in (("n_samples", n_samples), ("branch_horizon", branch_horizon)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"Received {name}={value!r}: what is measured is a group that forks every so many steps, so it must be a "
                "whole number of at least 1. branch_horizon=64 is what 'auto' does where groups pay."
            )
    layer: Any = env
    try:
        while is_recorder(layer):
            layer = layer.env
        branching = layer if isinstance(layer, BranchingWrapper) else BranchingWrapper(layer)
        branching.reset(seed=0)
        failure = branching.check_siblings()
        if failure is not None:
            raise failure.error
        rounds = _measured(branching)
    except BranchingError as error:
        return BranchingReport(str(env), "none", n_samples, branch_horizon, str(error))
    except Exception as error:
        refusal = f"{env} cannot be examined: it raised {type(error).__name__}: {error} when it played random actions."
        return BranchingReport(str(env), "none", n_samples, branch_horizon, refusal)
    maker = branching.sibling_maker
    groups = [step + (n_samples - 1) * (sibling_step + fork / branch_horizon) for step, fork, sibling_step in rounds]
    return BranchingReport(
        *(str(env), "forked" if maker.forks else "copied", n_samples, branch_horizon),
        reasons=tuple(maker.reasons),
        step=1e6 * median(one[0] for one in rounds),
        fork=1e6 * median(one[1] for one in rounds),
        sibling_step=1e6 * median(one[2] for one in rounds),
        group_step=1e6 * median(groups),
        slow_down=median(group / (n_samples * one[0]) for group, one in zip(groups, rounds, strict=True)),
    )


def _measured(branching: BranchingWrapper) -> list[tuple[float, float, float]]:
    """Seconds of a step, of a fork and of a sibling's step, round by round: a busy machine changes from moment to moment."""
    actions, sibling = RandomActions(branching), None
    rounds: list[tuple[float, float, float]] = []
    branching.reset(seed=0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Each sibling of")  # the report says it, too
        while time.perf_counter() - start < (SECONDS if len(rounds) > 2 else MOST_SECONDS) and len(rounds) < 2000:
            began = time.perf_counter()
            sibling = branching.sibling_maker(sibling)
            if sibling.kind == "forked":  # a process is there when it has answered
                sibling.get_wrapper_attr("get_wrapper_attr")("action_space")
            fork = time.perf_counter() - began
            sibling_step, _ = _timed(sibling, actions)
            step, ended = _timed(branching.env, actions)
            rounds.append((step, fork, sibling_step))
            if ended:
                branching.reset()
    if sibling is not None:
        sibling.close()
    return rounds


def _timed(env: Any, actions: RandomActions) -> tuple[float, bool]:
    """Seconds of a step, and whether the episode ended."""
    seconds, n_steps, ended = 0.0, 0, False
    while n_steps < STEPS and not ended:
        action, start = actions(env), time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        seconds += time.perf_counter() - start
        n_steps, ended = n_steps + 1, bool(terminated or truncated)
    return seconds / n_steps, ended
