"""A report for the user: how an env is branched, whether its siblings are exact, and what they cost."""

import time
import warnings
from statistics import median
from typing import Any, NamedTuple

import gymnasium as gym

from sb3_hybrid_grpo.branching.exactness import RandomActions
from sb3_hybrid_grpo.branching.groups import AUTO_HORIZON
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper
from sb3_hybrid_grpo.branching.wrapper_chain import named, require_env, without_recorders
from sb3_hybrid_grpo.errors import BranchingError

SECONDS, MOST_SECONDS = 0.6, 3.0
"""Seconds for which costs are measured, and the most if rounds take long."""
CHEAP = 1.2
"""Forks with a slow-down below this are worth a try."""
STEPS = 4
"""Steps of a sibling and of the env in a round."""


class BranchingReport(NamedTuple):
    """The result of :func:`check_branching`. Times are in microseconds; ``str(report)`` is a readable text."""

    env: str
    engine: str
    """How siblings are made: "copied", "forked", or "none"."""
    n_samples: int
    branch_horizon: int
    refusal: str = ""
    """Why the env cannot be branched; empty if it can."""
    reasons: tuple[str, ...] = ()
    """Why siblings cannot be copies."""
    step: float = 0.0
    """Time of one step of the env alone."""
    fork: float = 0.0
    """Time to make a sibling."""
    sibling_step: float = 0.0
    group_step: float = 0.0
    """Time of one step of all members, with all costs of branching."""
    slow_down: float = 0.0
    """Time of a group's step divided by the time of N plain steps: the median over rounds."""

    @property
    def is_exact(self) -> bool:
        """Whether the env can be branched: an env whose siblings are not exact is refused."""
        return not self.refusal

    @property
    def hint(self) -> str:
        """Advice that makes branching faster; empty if there is none."""
        if self.engine == "forked" and self.slow_down < CHEAP:
            return 'beside this env\'s steps forks cost little: train with branch_horizon=256; with "auto" it trains as PPO'
        if self.engine == "forked":
            return (
                "forks cost milliseconds. Declare how the simulator is copied (register_copier), or saved and restored "
                "(register_engine, or save_state() and restore_state(state) of the env)"
            )
        steps, sibling_steps = self.n_samples * self.step, (self.n_samples - 1) * self.sibling_step
        if self.group_step - self.step - sibling_steps > max(steps / 2, sibling_steps):
            return (
                "copies make groups slow. If large tables never change, declare them: table.flags.writeable = False "
                "for an array, declare_constant for an attribute"
            )
        if sibling_steps > 2 * steps:
            return (
                "around each step the state of an object that all members share is saved and restored. If that is a generator "
                "of random numbers (np.random, random, a global one), draw from self.np_random instead"
            )
        return ""

    def __str__(self) -> str:
        if not self.is_exact:
            return self.refusal
        siblings = "live copies of the env" if self.engine == "copied" else "processes forked from the env's"
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


def check_branching(env: gym.Env[Any, Any], n_samples: int = 4, branch_horizon: int = AUTO_HORIZON) -> BranchingReport:
    """
    Find out how an env is branched, whether its siblings are exact, and what they cost. The env is reset and stepped; its
    recorders (such as ``Monitor``) record nothing.

    :param env: The env
    :param n_samples: N, the members of a group
    :param branch_horizon: K, the steps between two forks
    :return: The report
    :raises TypeError: if ``env`` is no env, for example its id
    :raises ValueError: if one of the numbers is no whole number of at least 1
    """
    require_env(env)
    for name, value in (("n_samples", n_samples), ("branch_horizon", branch_horizon)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"Received {name}={value!r}: it must be a whole number of at least 1, for a group that forks at a fixed "
                f"interval. Use n_samples=4 and branch_horizon={AUTO_HORIZON}, the interval of 'auto'."
            )
    try:
        layer = without_recorders(env)
        branching = layer if isinstance(layer, BranchingWrapper) else BranchingWrapper(layer)
        branching.reset(seed=0)
        failure = branching.check_siblings()
        if failure is not None:
            raise failure.error
        rounds, ends = _measured(branching)
    except BranchingError as error:
        return BranchingReport(named(env), "none", n_samples, branch_horizon, str(error))
    except Exception as error:
        refusal = f"{named(env)} cannot be examined: it raised {type(error).__name__}: {error} when it played random actions."
        return BranchingReport(named(env), "none", n_samples, branch_horizon, refusal)
    maker = branching.sibling_maker
    forks = max(1 / branch_horizon, ends)  # a step
    groups = [step + (n_samples - 1) * (sibling_step + forks * fork) for step, fork, sibling_step in rounds]
    return BranchingReport(
        *(named(env), "forked" if maker.forks else "copied", n_samples, branch_horizon),
        reasons=tuple(maker.reasons),
        step=1e6 * median(one[0] for one in rounds),
        fork=1e6 * median(one[1] for one in rounds),
        sibling_step=1e6 * median(one[2] for one in rounds),
        group_step=1e6 * median(groups),
        slow_down=median(group / (n_samples * one[0]) for group, one in zip(groups, rounds, strict=True)),
    )


def _measured(branching: BranchingWrapper) -> tuple[list[tuple[float, float, float]], float]:
    """
    Seconds of a step, of a fork and of a sibling's step, in rounds, because the speed of a busy machine changes all the time;
    and how many episodes end in a step, on average.
    """
    actions, sibling, n_ends, n_steps = RandomActions(branching), None, 0, 0
    rounds: list[tuple[float, float, float]] = []
    branching.reset(seed=0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Each sibling of")  # the report says it, too
        while time.perf_counter() - start < (SECONDS if len(rounds) > 2 else MOST_SECONDS) and len(rounds) < 2000:
            began = time.perf_counter()
            sibling = branching.sibling_maker(sibling)
            if sibling.kind == "forked":  # the process is ready when it has answered
                sibling.get_wrapper_attr("get_wrapper_attr")("action_space")
            fork = time.perf_counter() - began
            sibling_step, *_ = _timed(sibling, actions)
            step, ended, taken = _timed(branching.env, actions)
            n_ends, n_steps = n_ends + ended, n_steps + taken
            rounds.append((step, fork, sibling_step))
            if ended:
                branching.reset()
    if sibling is not None:
        sibling.close()
    return rounds, n_ends / n_steps


def _timed(env: Any, actions: RandomActions) -> tuple[float, bool, int]:
    """Seconds of a step, whether the episode ended, and the number of steps."""
    seconds, n_steps, ended = 0.0, 0, False
    while n_steps < STEPS and not ended:
        action, start = actions(env), time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        seconds += time.perf_counter() - start
        n_steps, ended = n_steps + 1, bool(terminated or truncated)
    return seconds / n_steps, ended, n_steps
