"""Checks of the arguments that HybridGRPO adds to PPO's, before anything is built."""

import numbers
from typing import Any, get_args

import numpy as np

from sb3_hybrid_grpo.branching import BranchHorizon
from sb3_hybrid_grpo.buffers import AdvantageEstimator
from sb3_hybrid_grpo.selection import ActionSelection

SHORTEST_ROLLOUT = 16
"""The fewest executed steps of a grouped rollout, if ``n_steps`` allows."""


def executed_steps(n_steps: int, n_members: int) -> int:
    """
    Divide an update's samples of an env among the members of its group.

    :param n_steps: Samples of an env
    :param n_members: Number of members that act
    :return: Steps of each member: ``n_steps // n_members``, and at least ``min(n_steps, 16)``
    """
    return max(n_steps // n_members, min(n_steps, SHORTEST_ROLLOUT))


def steps_to_complete(done: int, n_steps: int, minibatch: float) -> int:
    """
    Length of a single rollout after shorter grouped ones, so that it completes the ``n_steps`` of a PPO update.

    :param done: Samples of an env since the last complete update
    :param n_steps: Samples of an env in an update
    :param minibatch: Samples of an env in a minibatch; with less, the rollout completes the next update, too
    :return: Steps of each env
    """
    is_short = done and n_steps - done < minibatch
    return (2 if is_short else 1) * n_steps - done


def steps_notice(n_steps: int, n_samples: int) -> str:
    """
    :param n_steps: Samples of an env
    :param n_samples: Members of a group
    :return: A notice that grouped rollouts have another number of samples than PPO's; empty if the number is the same
    """
    each = executed_steps(n_steps, n_samples)
    if each * n_samples == n_steps:
        return ""
    nearest = max(round(n_steps / n_samples), SHORTEST_ROLLOUT) * n_samples
    return (
        f"Received n_steps={n_steps} with n_samples={n_samples}: a grouped rollout has {each * n_samples} samples of each "
        f"env, {each} from each member (n_steps // n_samples, and at least min(n_steps, {SHORTEST_ROLLOUT})). To have as many "
        f"samples as PPO, use n_steps={nearest}, a multiple of n_samples."
    )


def check_no_longer(arguments: dict[str, Any]) -> None:
    """
    Refuse arguments and values that version 0.1 had and that were removed.

    :param arguments: Names and values
    :raises ValueError: if there is one; says what to use instead
    """
    if arguments.get("branch_horizon") == "free":
        raise ValueError(
            "Received branch_horizon='free', which was removed: members that never fork are PPO with n_samples times the "
            "envs. Make that many envs and use n_samples=1, or use branch_horizon='auto', which steps no siblings while "
            "groups do not pay."
        )
    if arguments.get("sampling_temperature", 1) != 1:
        raise ValueError(
            f"Received sampling_temperature={arguments['sampling_temperature']!r}, which was removed: siblings that sample at "
            "another temperature gained nothing. Leave it out; to explore more, raise ent_coef."
        )
    ent_coef = arguments.get("ent_coef", 0.0)
    if "target_entropy" in arguments or not _is_number(ent_coef):
        raise ValueError(
            f"Received ent_coef={ent_coef!r}{' and target_entropy' if 'target_entropy' in arguments else ''}: entropy "
            "coefficients that are learned or scheduled were removed. Use a number, as with PPO; a callback may change "
            "model.ent_coef while it trains."
        )


def check_arguments(model: Any) -> None:
    """
    Check the arguments of the groups, alone and together.

    :param model: The model, with the arguments as attributes
    :raises ValueError: if a value is not allowed; says what was received, what is needed and how to fix it
    """
    n_samples, horizon, adapt = model.n_samples, model.branch_horizon, model.adapt_rollouts
    if not _is_whole(n_samples) or n_samples < 1:
        text = "it must be a whole number of at least 1, the number of actions tried in each state."
        raise _error(model, "n_samples", text + " Use n_samples=4, or n_samples=1 for plain PPO.")
    check_no_longer({"branch_horizon": horizon, "ent_coef": model.ent_coef})
    if not isinstance(model.branching_check, bool | np.bool_):
        raise _error(model, "branching_check", "it must be True or False. Leave it at True.")
    if not isinstance(adapt, bool) and (not _is_whole(adapt) or adapt < 1):
        text = (
            "it must be True, False, or the least number of executed steps of a grouped rollout, a whole number of at least 1."
        )
        raise _error(model, "adapt_rollouts", text + " Leave it at True.")
    words = get_args(get_args(BranchHorizon)[-1])
    if not (horizon in words if isinstance(horizon, str) else _is_whole(horizon) and horizon >= 1):
        text = "it must be a whole number of at least 1 (the number of steps between two forks of the siblings), or "
        raise _error(model, "branch_horizon", text + " or ".join(map(repr, words)) + ". Use branch_horizon=256.")
    if model.n_steps < n_samples:
        text = (
            f"n_steps counts the samples of an env in an update, at least one from each of its {n_samples} members. Use "
            f"n_steps of at least {n_samples}, or fewer n_samples."
        )
        raise _error(model, "n_steps n_samples", text)
    _check_estimator(model)
    _check_transform(model)
    _check_selection(model)


def checked_buffer_class(given: type[Any], automatic: type[Any]) -> type[Any]:
    """Check a user's buffer class: the first class of this package among its bases must be the one that fits the model."""
    if next((one for one in given.__mro__ if one.__module__ == automatic.__module__), None) is not automatic:
        raise ValueError(
            f"Received rollout_buffer_class={given.__name__}, which has no place for the members of a group. Use None, or a "
            f"subclass of {automatic.__module__}.{automatic.__name__}."
        )
    return given


def _check_estimator(model: Any) -> None:
    estimator, n_samples = model.advantage_estimator, model.n_samples
    horizon, beta = model.branch_horizon, model.group_baseline
    _check_word(model, "advantage_estimator", AdvantageEstimator)
    received = "advantage_estimator n_samples branch_horizon"
    if estimator in ("paper", "paper_per_sample") and (horizon == "auto" or (n_samples == 1 and horizon != 1)):
        text = (
            "the paper's n steps end where siblings fork, and single rollouts have no siblings. Use n_samples of at least 2 "
            "and branch_horizon=1 (as in the paper), a larger number or 'episode', or use advantage_estimator='hybrid'."
        )
        raise _error(model, received, text)
    if estimator == "grpo" and (n_samples < 2 or horizon == "auto"):
        text = (
            "GRPO's advantage compares the members of a group. Use n_samples of at least 2, and a number or 'episode' for "
            "branch_horizon."
        )
        raise _error(model, received, text)
    if beta != "auto" and (not _is_number(beta) or not 0 <= beta <= 1):
        text = (
            "it must be 'auto' (estimated from every rollout) or a number between 0 (the critic's baseline alone, as in PPO) "
            "and 1 (the whole group baseline)."
        )
        raise _error(model, "group_baseline", text)
    for name in ("group_baseline", "adapt_rollouts"):
        if _is_number(getattr(model, name)) and (estimator != "hybrid" or n_samples < 2):
            text = "it has no effect without advantage_estimator='hybrid' and groups of at least 2 members. Leave it"
            raise _error(model, f"{name} advantage_estimator n_samples", f"{text} out, or change the others.")


def _check_transform(model: Any) -> None:
    transform = model.reward_transform
    parts = transform if isinstance(transform, list | tuple) else [transform]
    if (model.branch_horizon == "auto" or model.n_samples < 2) and "group" in [one for one in parts if isinstance(one, str)]:
        text = (
            "'group' compares members that fork from one state, and single rollouts have none. Use a number for "
            "branch_horizon and n_samples of at least 2, or another transform, 'normalize' for example."
        )
        raise _error(model, "reward_transform n_samples branch_horizon", text)


def _check_selection(model: Any) -> None:
    selection, temperature = model.action_selection, model.selection_temperature
    _check_word(model, "action_selection", ActionSelection)
    if not _is_number(temperature) or not 0 < temperature < np.inf:
        raise _error(model, "selection_temperature", "it must be a number greater than 0.")
    if selection != "softmax" and temperature != 1:
        text = "it has no effect. Leave it at 1.0, or use action_selection='softmax'."
        raise _error(model, "selection_temperature action_selection", text)
    if selection != "on_policy" and (model.n_samples < 2 or model.branch_horizon != 1):
        text = (
            "it chooses among several actions of one state, which needs n_samples of at least 2 and branch_horizon=1: between "
            "two forks, siblings are in other states."
        )
        raise _error(model, "action_selection n_samples branch_horizon", text)
    if selection != "on_policy" and model.advantage_estimator == "grpo":
        text = "'grpo' has no critic to choose by. Use action_selection='on_policy', or an estimator other than 'grpo'."
        raise _error(model, "action_selection advantage_estimator", text)


def _error(model: Any, names: str, text: str) -> ValueError:
    """An error that begins with the values of arguments. ``names`` is separated by blanks, the wrong argument first."""
    first, *others = (f"{name}={getattr(model, name)!r}" for name in names.split())
    return ValueError(f"Received {first}{' with ' if others else ''}{', '.join(others)}: {text}")


def _check_word(model: Any, name: str, words: Any) -> None:
    if getattr(model, name) not in get_args(words):
        raise _error(model, name, f"it must be one of {', '.join(map(repr, get_args(words)))}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
