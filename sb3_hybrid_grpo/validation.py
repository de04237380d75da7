"""Checks of the arguments that HybridGRPO has and PPO has not, before anything is built."""

import numbers
from typing import Any, get_args

import numpy as np

from sb3_hybrid_grpo.branching import BranchHorizon
from sb3_hybrid_grpo.buffers import AdvantageEstimator
from sb3_hybrid_grpo.selection import ActionSelection

SHORTEST_ROLLOUT = 16
"""Executed steps that a grouped rollout has at least, if ``n_steps`` allows."""


def executed_steps(n_steps: int, n_members: int) -> int:
    """
    Divide an update's samples of an env among the members of its group.

    :param n_steps: Samples of an env
    :param n_members: Members that step together
    :return: Steps of each member: ``n_steps // n_members``, and at least ``min(n_steps, 16)``
    """
    return max(n_steps // n_members, min(n_steps, SHORTEST_ROLLOUT))


def steps_notice(n_steps: int, n_samples: int) -> str:
    """
    :param n_steps: Samples of an env
    :param n_samples: Members of a group
    :return: That grouped rollouts have another number of samples; empty where they have not
    """
    each = executed_steps(n_steps, n_samples)
    if each * n_samples == n_steps:
        return ""
    return (
        f"Received n_steps={n_steps} with n_samples={n_samples}: a grouped rollout has {each * n_samples} samples of each "
        f"env, {each} from each member (n_steps // n_samples, and at least min(n_steps, {SHORTEST_ROLLOUT})). Use a "
        f"multiple of {n_samples} that is {SHORTEST_ROLLOUT * n_samples} or more for as many samples as PPO has."
    )


def check_no_longer(arguments: dict[str, Any]) -> None:
    """
    Check for arguments of version 0.1 that are gone, and for values that are.

    :param arguments: Names and values
    :raises ValueError: if there is one; says what to use instead
    """
    if arguments.get("branch_horizon") == "free":
        raise ValueError(
            "Received branch_horizon='free', which is gone: members that never fork are PPO with n_samples times the envs. "
            "Make that many envs and use n_samples=1, or use branch_horizon='auto', which steps no siblings where groups do "
            "not pay."
        )
    if arguments.get("sampling_temperature", 1) != 1:
        raise ValueError(
            f"Received sampling_temperature={arguments['sampling_temperature']!r}, which is gone: tempered siblings gained "
            "nothing. Leave it out; to explore more, raise ent_coef."
        )
    ent_coef = arguments.get("ent_coef", 0.0)
    if "target_entropy" in arguments or not _is_number(ent_coef):
        raise ValueError(
            f"Received ent_coef={ent_coef!r}{' and target_entropy' if 'target_entropy' in arguments else ''}: entropy "
            "coefficients that are learned or scheduled are gone. Use a number, as with PPO; a callback may change "
            "model.ent_coef while it trains."
        )


def check_arguments(model: Any) -> None:
    """
    Check the arguments of the groups, alone and together.

    :param model: Has them as attributes
    :raises ValueError: if an argument is not what it may be; says what was received, what is needed and how to fix it
    """
    n_samples = model.n_samples
    if not _is_whole(n_samples) or n_samples < 1:
        raise ValueError(
            f"Received n_samples={n_samples!r}: it must be a whole number of at least 1, the number of actions "
            "tried in each state. Use n_samples=4, or n_samples=1 for plain PPO."
        )
    check_no_longer({"branch_horizon": model.branch_horizon, "ent_coef": model.ent_coef})
    if not isinstance(model.branching_check, bool | np.bool_):
        raise ValueError(f"Received branching_check={model.branching_check!r}: it must be True or False. Leave it at True.")
    adapt = model.adapt_rollouts
    if not isinstance(adapt, bool) and (not _is_whole(adapt) or adapt < 1):
        raise ValueError(
            f"Received adapt_rollouts={adapt!r}: it must be True, False, or the least number of executed steps of a grouped "
            "rollout, a whole number of at least 1. Leave it at True."
        )
    _check_horizon(model.branch_horizon)
    _check_steps(model.n_steps, n_samples)
    _check_estimator(n_samples, model.branch_horizon, model.advantage_estimator)
    _check_baseline(n_samples, model.branch_horizon, model.advantage_estimator, model.group_baseline)
    _check_transform(model.reward_transform, model.branch_horizon)
    selection = (model.action_selection, model.selection_temperature)
    _check_selection(*selection, n_samples, model.branch_horizon, model.advantage_estimator)


def _check_steps(n_steps: int, n_samples: int) -> None:
    if n_steps < n_samples:
        raise ValueError(
            f"Received n_steps={n_steps} with n_samples={n_samples}: n_steps counts the samples of an env in an update, at "
            f"least one from each of its {n_samples} members. Use n_steps of at least {n_samples}, or fewer n_samples."
        )


def _check_horizon(branch_horizon: Any) -> None:
    *_, words = get_args(BranchHorizon)
    known = get_args(words)
    if isinstance(branch_horizon, str) and branch_horizon in known:
        return
    if isinstance(branch_horizon, str) or not _is_whole(branch_horizon) or branch_horizon < 1:
        words_known = " or ".join(repr(word) for word in known)
        raise ValueError(
            f"Received branch_horizon={branch_horizon!r}: it must be a whole number of at least 1 (siblings fork from the "
            f"executed member every so many steps), or {words_known}. Use branch_horizon=64."
        )


def _check_estimator(n_samples: int, branch_horizon: Any, estimator: Any) -> None:
    known = get_args(AdvantageEstimator)
    if estimator not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"Received advantage_estimator={estimator!r}: it must be one of {names}.")
    paper = estimator in ("paper", "paper_per_sample")
    if paper and branch_horizon == "auto":
        raise ValueError(
            f"Received advantage_estimator={estimator!r} with branch_horizon={branch_horizon!r}: the paper's advantage is "
            "that of branches that fork in one state, and single rollouts have none. Use a number (1 is the paper's) or "
            "'episode' for branch_horizon, or advantage_estimator='hybrid'."
        )
    if paper and n_samples == 1 and branch_horizon != 1:
        raise ValueError(
            f"Received advantage_estimator={estimator!r} with n_samples=1 and branch_horizon={branch_horizon!r}: it is the "
            "forks of siblings that end the paper's n steps. Use n_samples of at least 2, or branch_horizon=1."
        )
    if estimator == "grpo" and (n_samples < 2 or branch_horizon == "auto"):
        raise ValueError(
            f"Received advantage_estimator='grpo' with n_samples={n_samples} and branch_horizon={branch_horizon!r}: GRPO's "
            "advantage compares the members of a group. Use n_samples of at least 2, and a number or 'episode' for "
            "branch_horizon."
        )


def _check_baseline(n_samples: int, branch_horizon: Any, estimator: str, group_baseline: Any) -> None:
    if group_baseline == "auto":
        return
    if not _is_number(group_baseline) or not 0 <= group_baseline <= 1:
        raise ValueError(
            f"Received group_baseline={group_baseline!r}: it must be 'auto' (learned from every rollout) or a number between "
            "0 (the critic's baseline alone, as in PPO) and 1 (the group's, as in GRPO)."
        )
    if estimator != "hybrid" or n_samples < 2:
        raise ValueError(
            f"Received group_baseline={group_baseline} with advantage_estimator={estimator!r}, n_samples={n_samples} and "
            f"branch_horizon={branch_horizon!r}, where it would do nothing: it belongs to the 'hybrid' estimator and to "
            "groups of at least 2 members. Leave group_baseline at 'auto', or change the others."
        )


def _check_transform(reward_transform: Any, branch_horizon: Any) -> None:
    wanted = reward_transform if isinstance(reward_transform, list | tuple) else [reward_transform]
    if branch_horizon == "auto" and any(isinstance(one, str) and one == "group" for one in wanted):
        raise ValueError(
            f"Received reward_transform={reward_transform!r} with branch_horizon={branch_horizon!r}: 'group' compares members "
            "that fork from one state, and single rollouts have none. Use a number for branch_horizon, or 'normalize'."
        )


def _check_selection(selection: Any, temperature: Any, n_samples: int, branch_horizon: Any, estimator: str) -> None:
    known = get_args(ActionSelection)
    if selection not in known:
        raise ValueError(f"Received action_selection={selection!r}: it must be one of {', '.join(map(repr, known))}.")
    if not _is_number(temperature) or not 0 < temperature < np.inf:
        raise ValueError(f"Received selection_temperature={temperature!r}: it must be a number greater than 0.")
    if selection != "softmax" and temperature != 1:
        raise ValueError(
            f"Received selection_temperature={temperature} with action_selection={selection!r}, where it would do nothing. "
            "Leave it at 1.0, or use action_selection='softmax'."
        )
    if selection == "on_policy":
        return
    if n_samples < 2 or branch_horizon != 1:
        raise ValueError(
            f"Received action_selection={selection!r} with n_samples={n_samples} and branch_horizon={branch_horizon!r}: it "
            "chooses among the actions of one state, so there must be two or more (n_samples), and all members must be in "
            "that state (branch_horizon=1); siblings that go on for longer are somewhere else."
        )
    if estimator == "grpo":
        raise ValueError(
            f"Received action_selection={selection!r} with advantage_estimator='grpo', which has no critic to choose by. "
            "Use action_selection='on_policy', or an estimator other than 'grpo'."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
