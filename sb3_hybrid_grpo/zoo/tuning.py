"""What ``train --optimize-hyperparameters`` tries."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_params

# All are drawn in every trial, needed or not: a space that stays the same is what the TPE sampler learns from.
_CHOICES: dict[str, list[Any]] = {
    "branch_horizon": [1, 16, 64, 256, "episode", "free", "auto"],
    "group_baseline": ["auto", 0.0, 0.5, 1.0],
    # without "group", which not every branch_horizon allows
    "reward_transform": [None, "tanh", "clip", "symlog", "normalize", "scale"],
}


def suggest_n_samples(trial: optuna.Trial) -> int:
    """
    Draw the size of the groups; the same one whenever it is asked of a trial.

    :param trial: The trial
    :return: The members of a group
    """
    return 1 << trial.suggest_int("n_samples_pow", 1, 3)


def sample_hybrid_grpo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw hyperparameters: those that the Zoo draws for PPO, and those of the groups.

    :param trial: The trial
    :param n_actions: Not used, as in the Zoo's own
    :param n_envs: Not used
    :param additional_args: Not used
    :return: Arguments of HybridGRPO
    """
    sample_ppo_params(trial, n_actions, n_envs, additional_args)
    suggest_n_samples(trial)
    for name, choices in _CHOICES.items():
        trial.suggest_categorical(name, choices)
    hyperparams = convert_hybrid_grpo_params(trial.params)
    for name in ("gamma", "gae_lambda", "n_samples", "n_steps", "batch_size", "group_baseline"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_hybrid_grpo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn what was drawn into hyperparameters that are legal together.

    :param sampled_params: The parameters of a trial
    :return: Arguments of HybridGRPO
    """
    hyperparams: dict[str, Any] = convert_onpolicy_params(sampled_params)
    n_samples = hyperparams["n_samples"] = 2 ** hyperparams.pop("n_samples_pow")
    # Powers of 2. What was drawn as n_steps counts the samples of an env, so that the number of updates does not depend on N.
    samples = hyperparams["n_steps"]
    hyperparams["n_steps"] = samples // n_samples
    hyperparams["batch_size"] = min(max(hyperparams["batch_size"], n_samples), samples)
    if hyperparams["branch_horizon"] in ("free", "auto"):
        hyperparams["group_baseline"] = "auto"
    return hyperparams
