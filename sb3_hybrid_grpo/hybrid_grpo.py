"""Hybrid Group Relative Policy Optimization for Stable-Baselines3."""

import inspect
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import FloatSchedule

from sb3_hybrid_grpo import validation
from sb3_hybrid_grpo.branching import BranchHorizon
from sb3_hybrid_grpo.buffers import AdvantageEstimator
from sb3_hybrid_grpo.clipped_update import ClippedUpdate
from sb3_hybrid_grpo.model_files import check_is_hybrid, check_is_ppo
from sb3_hybrid_grpo.sampling import check_can_be_tempered
from sb3_hybrid_grpo.selection import ActionSelection
from sb3_hybrid_grpo.transforms import RewardTransform

SelfHybridGRPO = TypeVar("SelfHybridGRPO", bound="HybridGRPO")


class HybridGRPO(ClippedUpdate):
    """
    Hybrid Group Relative Policy Optimization: PPO (clip version) that evaluates N sampled actions in each state instead of
    one, and keeps the critic.

    Every env carries a group of N members. Member 0 is executed: it is what callbacks, loggers and ``num_timesteps`` see.
    The others, its siblings, live beside it in copies or snapshots of the env, fork from it every ``branch_horizon`` steps,
    and then face the same noise; every step of theirs is training data too, and counted in ``num_simulator_steps``.

    Paper: https://arxiv.org/abs/2502.01652

    The arguments up to ``device`` are those of :class:`stable_baselines3.PPO`, in its order and with its defaults.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to execute in each environment per update (the rollout has
        n_steps * n_envs * n_samples samples)
    :param batch_size: Minibatch size, in samples
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for the trade-off of bias and variance of the Generalized Advantage Estimator
        (estimator "hybrid" only)
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function, likewise; None: no clipping. Depends on the reward scale
    :param normalize_advantage: Whether to normalize the advantage in each minibatch
    :param ent_coef: Entropy coefficient for the loss calculation, also a function of the current progress remaining, or
        "lin_0.01" (from 0.01 down to 0), or "auto" (learned, see ``target_entropy``; "auto_0.1" begins at 0.1)
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE (-1: only at the start of the rollout)
    :param rollout_buffer_class: A subclass of :class:`HybridRolloutBuffer` or its Dict form; None: selected automatically
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit of the KL divergence between updates (None: no limit)
    :param stats_window_size: Number of episodes to average the reported success rate, episode length and reward over
    :param tensorboard_log: The log location for tensorboard (None: no logging)
    :param policy_kwargs: Additional arguments to be passed to the policy on creation
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param n_samples: N, the number of members of a group. 1: PPO, to the last parameter
    :param branch_horizon: When siblings fork from member 0: an int K, every K steps and whenever member 0's episode ends;
        "episode", at the latter only; "free", never: N independent trajectories an env, as PPO with N times the envs;
        "auto", every 64 steps where the env draws random numbers as it steps and groups pay; free where not
    :param advantage_estimator: "hybrid" (GAE minus a share of the other members' advantage), "paper" (the paper's: the mean
        over branches of their K-step advantage), "paper_per_sample" (each branch's own) or "grpo" (rewards standardised within
        the group, no critic)
    :param group_baseline: That share β, between 0 (PPO's baseline) and 1 (the group's); "auto": learned from every rollout
    :param reward_transform: f(R), applied to the rewards before the estimator: None, "tanh", "clip", "symlog", "normalize",
        "scale", "group", a function from an array of rewards to one of the same shape, or a list of these
    :param target_entropy: Entropy, in nats, that ``ent_coef="auto"`` keeps the policy at; "auto": minus the number of action
        dimensions, or half the largest possible entropy of discrete actions
    :param action_selection: Which of the N actions of a state is executed: "on_policy", the first; "greedy", the one with the
        largest f(R) + γV(s'); "softmax", drawn by that. The last two need K = 1, and one more step of the simulator a state
    :param selection_temperature: Temperature of "softmax", in units of f(R) + γV(s')
    :param sampling_temperature: τ: siblings' actions are drawn from π^(1/τ), for τ > 1 broader than the policy π, and weighted
        so that gradients stay π's ("grpo" divides by the spread of what was drawn). Other than 1, it needs K = 1
    :param branching_check: Whether to show before the training, in a fraction of a second, that siblings of this very env are
        exact; where they are not in place, they are made by forks of the process
    :raises ValueError: if an argument is not what it may be
    :raises BranchingError: if the env cannot be branched
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

    _without_groups: ClassVar[type[OnPolicyAlgorithm]] = PPO
    """The algorithm that it is without groups."""
    _action_spaces: ClassVar[tuple[Any, ...]] = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float | str | Schedule = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        n_samples: int = 4,
        branch_horizon: BranchHorizon = "auto",
        advantage_estimator: AdvantageEstimator = "hybrid",
        group_baseline: float | Literal["auto"] = "auto",
        reward_transform: RewardTransform | None = None,
        target_entropy: float | Literal["auto"] = "auto",
        action_selection: ActionSelection = "on_policy",
        selection_temperature: float = 1.0,
        sampling_temperature: float = 1.0,
        branching_check: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            _init_setup_model=False,
            supported_action_spaces=self._action_spaces,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.n_samples = n_samples
        self.branch_horizon = branch_horizon
        self.advantage_estimator = advantage_estimator
        self.group_baseline = group_baseline
        self.reward_transform = reward_transform
        self.target_entropy = target_entropy
        self.action_selection = action_selection
        self.selection_temperature = selection_temperature
        self.sampling_temperature = sampling_temperature
        self.branching_check = branching_check
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        validation.check_arguments(
            self.n_samples, self.branch_horizon, self.advantage_estimator, self.group_baseline, self.batch_size
        )
        validation.check_switch("branching_check", self.branching_check)
        validation.check_transform(self.reward_transform, self.branch_horizon)
        choice = (self.action_selection, self.selection_temperature)
        validation.check_selection(*choice, self.n_samples, self.branch_horizon, self.advantage_estimator)
        validation.check_sampling(
            self.sampling_temperature, self.n_samples, self.branch_horizon, self.action_selection, self.use_sde
        )
        sizes = (self.n_steps, self.n_envs, self.n_samples, self.branch_horizon == 1)
        validation.check_batches(self.batch_size, self.normalize_advantage, *sizes)
        self._setup_lr_schedule()
        self.entropy = self._make_entropy()
        self.set_random_seed(self.seed)
        self._check_policy()
        self.policy = self._make_policy().to(self.device)
        self._setup_groups()
        check_can_be_tempered(self.policy, self.sampling_temperature)
        self._maybe_recommend_cpu()
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            validation.check_clip_range_vf(self.clip_range_vf)
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        if isinstance(load_path_or_dict, dict):
            given: dict[str, Any] = load_path_or_dict
        else:
            given = load_from_zip_file(load_path_or_dict, device=device, load_data=False)[1]
        super().set_parameters(self.entropy.suited(given), exact_match, device)

    def _check_policy(self) -> None:
        if not issubclass(self.policy_class, ActorCriticPolicy) or issubclass(self.policy_class, RecurrentActorCriticPolicy):
            raise ValueError(
                f"Received the policy {self.policy_class.__name__}. Use 'MlpPolicy', 'CnnPolicy' or 'MultiInputPolicy', or a "
                "subclass of stable_baselines3.common.policies.ActorCriticPolicy; MaskableHybridGRPO and "
                "RecurrentHybridGRPO are for maskable and for recurrent ones."
            )

    def _make_policy(self) -> Any:
        return self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        )

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        if self.entropy.optimizer is None:
            return state_dicts, variables
        return [*state_dicts, "entropy.optimizer"], [*variables, "entropy.log_coef"]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "entropy"]

    @classmethod
    def load(cls: type[SelfHybridGRPO], path: str | Path | BufferedIOBase, *args: Any, **kwargs: Any) -> SelfHybridGRPO:
        """
        Load a model. All but the check of the file is SB3's.

        :param path: Path to the file, or an open file
        :param args: Those of :meth:`BaseAlgorithm.load`: ``env``, ``device``, ``custom_objects``, ...
        :param kwargs: As above; any other replaces an argument of the model
        :return: The model
        :raises ValueError: if the file is incomplete, or was saved by another algorithm
        """
        check_is_hybrid(path, cls.__name__, cls._without_groups.__name__)
        return super().load(path, *args, **kwargs)

    @classmethod
    def from_ppo(
        cls: type[SelfHybridGRPO],
        path: str | Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        **kwargs: Any,
    ) -> SelfHybridGRPO:
        """
        Go on from a model that PPO saved (MaskablePPO, RecurrentPPO for the variants): its policy, its optimiser's state, its
        arguments and its count of steps, each of which was a step of the simulator.

        :param path: Path to the file, or an open file
        :param env: The envs to train in; None for prediction alone
        :param device: Device (cpu, cuda, ...) on which the code should be run
        :param kwargs: Arguments that differ from PPO's or are not among them, ``n_samples=8`` for example
        :return: The model; go on with ``model.learn(..., reset_num_timesteps=False)``
        :raises ValueError: if the file is incomplete or was not saved by PPO, or an argument is unknown
        """
        check_is_ppo(path, cls.__name__, cls._without_groups.__name__)
        arguments = inspect.signature(HybridGRPO).parameters.keys() - {"policy", "env", "device", "_init_setup_model"}
        unknown = kwargs.keys() - arguments
        if unknown:
            raise ValueError(f"Received {', '.join(sorted(unknown))}, which {cls.__name__} does not have as an argument.")
        # PPO saves which buffer it chose for itself
        model = super().load(path, env, device, **{"rollout_buffer_class": None, **kwargs})
        model.num_simulator_steps = model.num_timesteps
        return model

    @staticmethod
    def paper_kwargs() -> dict[str, Any]:
        """
        Arguments that make it the paper's algorithm (https://arxiv.org/abs/2502.01652).

        :return: A new dict of literals, which serves in RL Zoo's files too
        """
        return {"n_samples": 4, "branch_horizon": 1, "advantage_estimator": "paper", "reward_transform": "tanh"}

    @staticmethod
    def grpo_kwargs() -> dict[str, Any]:
        """
        Arguments that make it DeepSeek's GRPO, state by state (https://arxiv.org/abs/2402.03300).

        :return: A new dict of literals, which serves in RL Zoo's files too
        """
        return {"n_samples": 4, "branch_horizon": 1, "advantage_estimator": "grpo"}

    def learn(
        self: SelfHybridGRPO,
        total_timesteps: int = 100_000,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfHybridGRPO:
        """
        Train.

        :param total_timesteps: Number of steps to execute, over all envs. The simulator takes ``n_samples`` times as many
        :param callback: Callback(s) called at every step
        :param log_interval: Number of rollouts between two logs (None: no logs)
        :param tb_log_name: Name of the run for TensorBoard; None: that of the class
        :param reset_num_timesteps: Whether to start counting steps anew
        :param progress_bar: Whether to show a progress bar (needs tqdm and rich)
        :return: The trained model
        """
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
