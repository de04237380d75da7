"""What HybridGRPO's own arguments may be, checked before anything is built."""

import numbers
import warnings
from typing import Any, get_args

import numpy as np

from sb3_hybrid_grpo.branching import BranchHorizon
from sb3_hybrid_grpo.buffers import AdvantageEstimator
from sb3_hybrid_grpo.errors import PPOArgumentError
from sb3_hybrid_grpo.selection import ActionSelection


def check_arguments(
    n_samples: Any, branch_horizon: Any, advantage_estimator: Any, group_baseline: Any, batch_size: int
) -> None:
    """
    Check the arguments that HybridGRPO has and PPO has not, alone and together.

    :param n_samples: Members of a group
    :param branch_horizon: When siblings fork
    :param advantage_estimator: Estimator of the advantage
    :param group_baseline: Share of the other members' advantage
    :param batch_size: Samples a minibatch
    :raises ValueError: if an argument is not what it may be; says what was received, what is needed and how to fix it
    """
    if not _is_whole(n_samples) or n_samples < 1:
        raise ValueError(
            f"Received n_samples={n_samples!r}: it must be a whole number of at least 1, the number of actions "
            "tried in each state. Use n_samples=4, or n_samples=1 for plain PPO."
        )
    if not _is_whole(batch_size) or batch_size < 1:
        raise ValueError(f"Received batch_size={batch_size!r}: it must be a whole number of at least 1. Use batch_size=64.")
    _check_horizon(branch_horizon)
    _check_estimator(n_samples, branch_horizon, advantage_estimator)
    _check_baseline(n_samples, branch_horizon, advantage_estimator, group_baseline)
    if branch_horizon == 1 and batch_size < n_samples:
        raise ValueError(
            f"Received batch_size={batch_size} with n_samples={n_samples} and branch_horizon=1, where the samples of a state "
            f"stay in one minibatch. Use a batch_size of at least {n_samples}."
        )


def check_switch(name: str, value: Any) -> None:
    """
    Check an argument that is either on or off.

    :param name: Its name
    :param value: Its value
    :raises ValueError: if it is anything else
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"Received {name}={value!r}: it must be True or False. Leave it at True.")


def check_batches(
    batch_size: int, normalize_advantage: bool, n_steps: int, n_envs: int, n_samples: int, shared_states: bool
) -> None:
    """
    Check that advantages can be normalized in every minibatch. Warns of minibatches of unequal size.

    :param batch_size: Samples a minibatch
    :param normalize_advantage: Whether they are normalized
    :param n_steps: Steps a rollout and env
    :param n_envs: Number of envs
    :param n_samples: Members of a group
    :param shared_states: Whether a minibatch has all the samples of a state, or none
    :raises PPOArgumentError: if a minibatch or a rollout has a single sample
    """
    samples = n_steps * n_envs * n_samples
    if normalize_advantage and (batch_size < 2 or samples < 2):
        raise PPOArgumentError(
            f"Received batch_size={batch_size} and n_steps * n_envs * n_samples = {samples}: both must be at least 2, because "
            "the advantage is normalized in each minibatch. Use larger ones, or normalize_advantage=False."
        )
    if shared_states and batch_size % n_samples > 0:
        batch_size -= batch_size % n_samples
        warnings.warn(
            f"With branch_horizon=1 the {n_samples} samples of a state stay in one minibatch, which therefore has "
            f"{batch_size} samples. We recommend a `batch_size` that is a multiple of n_samples={n_samples}.",
            stacklevel=2,
        )
    if samples % batch_size > 0:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size}, but because the rollout has n_steps * n_envs * n_samples "
            f"= {n_steps} * {n_envs} * {n_samples} = {samples} samples, there will be a truncated mini-batch of size "
            f"{samples % batch_size} in every epoch. We recommend a `batch_size` that is a factor of {samples}.",
            stacklevel=2,
        )


def check_clip_range_vf(clip_range_vf: Any) -> None:
    """
    Check the clipping parameter of the value function.

    :param clip_range_vf: It, or a function
    :raises PPOArgumentError: if it is not positive
    """
    if _is_number(clip_range_vf) and clip_range_vf <= 0:
        raise PPOArgumentError(f"Received clip_range_vf={clip_range_vf}: it must be positive, or None for no clipping.")


def check_transform(reward_transform: Any, branch_horizon: Any) -> None:
    """
    Check that f(R) has what it compares rewards with.

    :param reward_transform: f(R)
    :param branch_horizon: When siblings fork
    :raises ValueError: if it has not
    """
    wanted = reward_transform if isinstance(reward_transform, list | tuple) else [reward_transform]
    if branch_horizon in ("free", "auto") and any(isinstance(one, str) and one == "group" for one in wanted):
        raise ValueError(
            f"Received reward_transform={reward_transform!r} with branch_horizon={branch_horizon!r}: 'group' compares members "
            "that fork from one state, and free ones never do. Use a number for branch_horizon, or 'normalize'."
        )


def check_selection(selection: Any, temperature: Any, n_samples: int, branch_horizon: Any, estimator: str) -> None:
    """
    Check how the executed action is chosen.

    :param selection: Which action is executed
    :param temperature: Temperature of ``"softmax"``
    :param n_samples: Members of a group
    :param branch_horizon: When siblings fork
    :param estimator: Estimator of the advantage
    :raises ValueError: if it is not what it may be; says what was received, what is needed and how to fix it
    """
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


def check_sampling(temperature: Any, n_samples: int, branch_horizon: Any, selection: str, use_sde: bool) -> None:
    """
    Check what siblings' actions are drawn from.

    :param temperature: τ of the tempered policy
    :param n_samples: Members of a group
    :param branch_horizon: When siblings fork
    :param selection: Which action is executed
    :param use_sde: Whether actions are drawn by gSDE
    :raises ValueError: if it is not what it may be; says what was received, what is needed and how to fix it
    """
    if not _is_number(temperature) or not 0 < temperature < np.inf:
        raise ValueError(f"Received sampling_temperature={temperature!r}: it must be a number greater than 0. Use 1.0.")
    if temperature == 1:
        return
    received = f"Received sampling_temperature={temperature} with"
    if n_samples < 2 or branch_horizon != 1:
        raise ValueError(
            f"{received} n_samples={n_samples} and branch_horizon={branch_horizon!r}: it is siblings that are drawn by it, so "
            "there must be some (n_samples), and for one action each (branch_horizon=1): those that go on would visit the "
            "states of another policy, which no ratio of single actions corrects. Leave it at 1.0, or change the others."
        )
    if selection != "on_policy":
        raise ValueError(
            f"{received} action_selection={selection!r}, by which an action of a sibling may be executed: the states visited "
            "would be those of another policy, which no ratio of single actions corrects. Leave it at 1.0, or use "
            "action_selection='on_policy'."
        )
    if use_sde:
        raise ValueError(
            f"{received} use_sde=True: gSDE's noise is kept over many steps, so that actions are no draws from the "
            "distribution whose ratio would correct them. Leave it at 1.0, or use use_sde=False."
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
    if paper and branch_horizon in ("free", "auto"):
        raise ValueError(
            f"Received advantage_estimator={estimator!r} with branch_horizon={branch_horizon!r}: the paper's advantage is "
            "that of branches that fork in one state, and free siblings never fork. Use a number (1 is the paper's) or "
            "'episode' for branch_horizon, or advantage_estimator='hybrid'."
        )
    if paper and n_samples == 1 and branch_horizon != 1:
        raise ValueError(
            f"Received advantage_estimator={estimator!r} with n_samples=1 and branch_horizon={branch_horizon!r}: it is the "
            "forks of siblings that end the paper's n steps. Use n_samples of at least 2, or branch_horizon=1."
        )
    if estimator == "grpo" and (n_samples < 2 or branch_horizon in ("free", "auto")):
        raise ValueError(
            f"Received advantage_estimator='grpo' with n_samples={n_samples} and branch_horizon={branch_horizon!r}: GRPO's "
            "advantage compares the members of a group. Use n_samples of at least 2 and a branch_horizon other than 'free' "
            "and 'auto'."
        )


def _check_baseline(n_samples: int, branch_horizon: Any, estimator: str, group_baseline: Any) -> None:
    if group_baseline == "auto":
        return
    if not _is_number(group_baseline) or not 0 <= group_baseline <= 1:
        raise ValueError(
            f"Received group_baseline={group_baseline!r}: it must be 'auto' (learned from every rollout) or a number between "
            "0 (the critic's baseline alone, as in PPO) and 1 (the group's, as in GRPO)."
        )
    if estimator != "hybrid" or n_samples < 2 or branch_horizon == "free":
        raise ValueError(
            f"Received group_baseline={group_baseline} with advantage_estimator={estimator!r}, n_samples={n_samples} and "
            f"branch_horizon={branch_horizon!r}, where it would do nothing: it belongs to the 'hybrid' estimator and to "
            "groups of at least 2 members that fork. Leave group_baseline at 'auto', or change the others."
        )
    if branch_horizon == "auto":
        raise ValueError(
            f"Received group_baseline={group_baseline} with branch_horizon='auto', which decides by what the learned baseline "
            "removes. Leave group_baseline at 'auto', or give branch_horizon a number, 64 for example."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
