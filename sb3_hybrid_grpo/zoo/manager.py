"""The Zoo's experiments for HybridGRPO: PPO's entries, envs made branchable in their processes, errors in one line."""

import copy
from pathlib import Path
from typing import Any

import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_hybrid_grpo.commands.cli import CommandError
from sb3_hybrid_grpo.zoo import ALGORITHM, config_file

_CORRECTABLE = (ValueError, TypeError, AssertionError, NotImplementedError, OSError, ImportError, SyntaxError, yaml.YAMLError)


def experiment_manager(
    args: Any,
    algo: str,
    *positional: Any,
    vec_env_class: type[VecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    **named: Any,
) -> ExperimentManager:
    """
    Make the Zoo's experiment manager.

    :param args: The command line, as read by the Zoo
    :param algo: Name of the algorithm
    :param positional: Other arguments of :class:`ExperimentManager`
    :param vec_env_class: Class of the VecEnvs; None: the Zoo's choice
    :param vec_env_kwargs: Arguments of the VecEnvs
    :param named: Further arguments of :class:`ExperimentManager`, by name
    :return: The manager; for other algorithms than HybridGRPO the Zoo's own
    """
    manager = (HybridExperimentManager if algo == ALGORITHM else ExperimentManager)(args, algo, *positional, **named)
    manager.vec_env_class = vec_env_class or manager.vec_env_class
    manager.vec_env_kwargs = vec_env_kwargs or {}
    return manager


class HybridExperimentManager(ExperimentManager):
    """Manager for HybridGRPO. Without ``config``, an env's entry comes from :func:`config_file`, or else the Zoo's for PPO."""

    def __init__(self, args: Any, algo: str, env_id: str, *positional: Any, **named: Any) -> None:
        super().__init__(args, algo, env_id, *positional, **named)
        if not named.get("config"):
            listed = env_id in yaml.safe_load(config_file().read_text(encoding="utf-8"))
            self.config = str(config_file() if listed else Path(self.config).with_name("ppo.yml"))

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Read the hyperparameters; make the envs and the model.

        :return: The model and its hyperparameters; None for tuning
        :raises CommandError: if the hyperparameters cannot be read, or one is unknown or illegal
        """
        what = f"{self.env_name.gym_id} with the options of {self.config!r}"
        try:
            return super().setup_experiment()
        except (EOFError, ConnectionError) as error:
            raise CommandError(f"{what}: the process of an env has ended; its error stands above.") from error
        except _CORRECTABLE as error:
            raise CommandError(f"{what}{' and --hyperparams' if self.custom_hyperparams else ''}: {error}") from error

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        given = dict(hyperparams)
        for key in {"advantage_estimator", "action_selection"} & given.keys() if self.optimize_hyperparameters else ():
            raise ValueError(
                f"Received {key}={given[key]!r} with --optimize-hyperparameters, which tries values of branch_horizon and "
                f"group_baseline that do not go with every {key}. Leave it out."
            )
        if self.vec_env_class is SubprocVecEnv and (self.optimize_hyperparameters or given.get("n_samples") != 1):
            own = given.get("env_wrapper") or []
            hyperparams["env_wrapper"] = [
                *(own if isinstance(own, list) else [own]),
                "sb3_hybrid_grpo.branching.make_branchable",
            ]
        try:
            processed = super()._preprocess_hyperparams(hyperparams)
        except Exception as error:  # the Zoo evaluates and imports the entries of the file
            raise ValueError(f"Received {self._not_understood(given)}: {type(error).__name__}: {error}") from error
        if not isinstance(self.n_envs, int) or self.n_envs < 1:
            raise ValueError(f"Received n_envs={self.n_envs!r}: it must be a whole number of at least 1.")
        return processed

    def _not_understood(self, hyperparams: dict[str, Any]) -> str:
        """Name the option that the Zoo cannot read."""
        for key, value in hyperparams.items():
            alone = copy.copy(self)
            alone.verbose = 0
            try:
                ExperimentManager._preprocess_hyperparams(alone, {"n_timesteps": 1, key: value})
            except Exception:
                return f"{key}={value!r}"
        return f"{hyperparams}"
