"""The search space of ``train --optimize-hyperparameters``."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_params

# All are drawn in every trial, needed or not: the TPE sampler learns from a search space that stays the same.
_CHOICES: dict[str, list[Any]] = {
    "n_samples": [2, 4, 8],
    "branch_horizon": [16, 64, 256, "episode", "auto"],
    "group_baseline": ["auto", 0.0, 0.5, 1.0],
    # without "group", which does not go with every branch_horizon
    "reward_transform": [None, "tanh", "clip", "symlog", "normalize", "scale"],
}


def sample_hybrid_grpo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw the Zoo's hyperparameters for PPO, and the groups' own.

    :param trial: The trial
    :param n_actions: For the Zoo's sampler
    :param n_envs: For the Zoo's sampler
    :param additional_args: For the Zoo's sampler
    :return: Arguments of HybridGRPO
    """
    sample_ppo_params(trial, n_actions, n_envs, additional_args)
    for name, choices in _CHOICES.items():
        trial.suggest_categorical(name, choices)
    hyperparams: dict[str, Any] = convert_onpolicy_params(trial.params)
    return hyperparams
