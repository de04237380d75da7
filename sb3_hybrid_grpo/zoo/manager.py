"""The Zoo's experiments with what groups need: envs that can be branched, budgets in simulator steps."""

import copy
import inspect
from typing import Any

import optuna
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_hybrid_grpo.branching import make_branchable
from sb3_hybrid_grpo.commands.cli import CommandError
from sb3_hybrid_grpo.hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.zoo import ALGORITHM, config_file
from sb3_hybrid_grpo.zoo.tuning import suggest_n_samples

_SET_BY_THE_ZOO = ("env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model")
_ACCEPTED = {
    name: one.default for name, one in inspect.signature(HybridGRPO).parameters.items() if name not in _SET_BY_THE_ZOO
}
_NOT_UNDERSTOOD = (ImportError, AttributeError, NameError, SyntaxError, TypeError, AssertionError)
# What tuning varies is legal together with these alone.
_FIXED_IN_TUNING = ("advantage_estimator", "action_selection", "sampling_temperature")


class TrialId(int):
    """The number of a trial; the Zoo would take 0 for none."""

    def __bool__(self) -> bool:
        return True


class HybridExperimentManager(ExperimentManager):
    """
    The Zoo's :class:`ExperimentManager`; for algorithms other than HybridGRPO, nothing else.

    :param args: The command line, as read by the Zoo
    :param algo: Name of the algorithm
    :param positional: Other arguments of the Zoo's
    :param named: Likewise. Without a ``config`` by name, hyperparameters are taken from :func:`config_file`
    """

    def __init__(self, args: Any, algo: str, *positional: Any, **named: Any) -> None:
        super().__init__(args, algo, *positional, **named)
        self._is_ours = algo == ALGORITHM
        self._n_samples: int = _ACCEPTED["n_samples"]
        if self._is_ours:
            self.config = named.get("config") or str(config_file())
            self.trial_id = None if self.trial_id is None else TrialId(self.trial_id)

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        Read the hyperparameters, make the envs and, unless they are tuned, the model.

        :return: The model and its hyperparameters as they are saved; None for tuning
        :raises CommandError: if a hyperparameter is unknown or illegal
        :raises BranchingError: if the env cannot be branched
        """
        if not self._is_ours:
            return super().setup_experiment()
        try:
            return super().setup_experiment()
        except (ValueError, TypeError, AssertionError, NotImplementedError) as error:  # the last two are SB3's
            typed = "" if self.custom_hyperparams is None else " and --hyperparams"
            raise CommandError(f"{self.env_name.gym_id} with the options of {self.config}{typed}: {error}") from error

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the file of hyperparameters.

        :return: The hyperparameters, to be processed and to be saved
        :raises CommandError: if the file cannot be read
        """
        if not self._is_ours:
            return super().read_hyperparameters()
        try:
            return super().read_hyperparameters()
        except (OSError, ImportError, SyntaxError, yaml.YAMLError) as error:
            raise CommandError(
                f"Received {self.config!r} as the file of hyperparameters, which cannot be read: {error}"
            ) from error

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        for key, value in hyperparams.items():
            try:
                ExperimentManager._preprocess_schedules({key: value})
            except ValueError as error:
                raise ValueError(f"Received {key}={value!r}: it must be a number, or lin_ and a number.") from error
        return ExperimentManager._preprocess_schedules(hyperparams)

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if not self._is_ours:
            return super()._preprocess_hyperparams(hyperparams)
        for key, default, kind in (("n_envs", 1, int), ("n_timesteps", None, int | float)):
            value = hyperparams.get(key, default)
            if not isinstance(value, kind) or value < 1:
                raise ValueError(f"Received {key}={value!r}: it must be a whole number of at least 1.")
        given = dict(hyperparams)
        try:
            processed = super()._preprocess_hyperparams(hyperparams)
        except _NOT_UNDERSTOOD as error:
            raise ValueError(f"Received {self._not_understood(given)}: {error}") from error
        for_model = processed[0]
        for key in for_model:
            if key not in _ACCEPTED:
                raise ValueError(f"Received the unknown option {key!r}; HybridGRPO takes: {', '.join(_ACCEPTED)}.")
        self._n_samples = for_model.get("n_samples", self._n_samples)
        for key in _FIXED_IN_TUNING if self.optimize_hyperparameters else ():
            if for_model.get(key, _ACCEPTED[key]) != _ACCEPTED[key]:
                raise ValueError(
                    f"Received {key}={for_model[key]!r} with --optimize-hyperparameters, which tries values of branch_horizon "
                    f"and group_baseline that it cannot be used with. Leave {key} at {_ACCEPTED[key]!r}."
                )
        return processed

    def _not_understood(self, hyperparams: dict[str, Any]) -> str:
        """Name the option whose text the Zoo can neither evaluate nor import."""
        alone = copy.copy(self)
        alone.verbose = 0
        for key, value in hyperparams.items():
            try:
                ExperimentManager._preprocess_hyperparams(alone, {"n_timesteps": 1, key: value})
            except _NOT_UNDERSTOOD:
                return f"{key}={value!r}"
        return f"{hyperparams}"

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Make the envs; those that train in processes of their own can be branched there.

        :param n_envs: How many
        :param eval_env: Whether they are for evaluation
        :param no_log: Whether their episodes are not logged
        :return: The envs
        :raises BranchingError: if they train and cannot be branched
        """
        trains_in_groups = self._is_ours and not eval_env and (self._n_samples != 1 or self.optimize_hyperparameters)
        if not trains_in_groups or self.vec_env_class is DummyVecEnv:
            return super().create_envs(n_envs, eval_env, no_log)
        # tuning creates envs in several threads at once: self stays as it is
        branching = copy.copy(self)
        branching.env_wrapper = _branchable(self.env_wrapper)
        trial = copy.copy(branching)
        trial.vec_env_class, trial.verbose = DummyVecEnv, 0
        # an error in a process would not reach the user
        ExperimentManager.create_envs(trial, 1, no_log=True).close()
        return ExperimentManager.create_envs(branching, n_envs, no_log=no_log)

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train with hyperparameters of a trial. Every trial takes the configuration's simulator steps: n_timesteps * n_samples.

        :param trial: The trial
        :return: The mean reward of the last evaluation
        """
        if not self._is_ours:
            return super().objective(trial)
        one = copy.copy(self)
        one.n_timesteps = -(-self.n_timesteps * self._n_samples // suggest_n_samples(trial))
        trial.set_user_attr("n_timesteps", one.n_timesteps)
        return ExperimentManager.objective(one, trial)


def _branchable(env_wrapper: Any) -> Any:
    """The configuration's wrapper, and above it what lets siblings live beside the env."""
    return lambda env: make_branchable(env if env_wrapper is None else env_wrapper(env))
