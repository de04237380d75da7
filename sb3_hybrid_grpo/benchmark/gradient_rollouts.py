"""Independent rollouts of a frozen policy, and the gradients that each estimator makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.advantages import Baseline, group_baseline
from sb3_hybrid_grpo.buffers import AdvantageEstimator, HybridRolloutBuffer
from sb3_hybrid_grpo.cli import CommandError
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.evaluation import make_env
from sb3_hybrid_grpo.losses import normalize_advantages
from sb3_hybrid_grpo.sampling import evaluate_actions
from sb3_hybrid_grpo.transforms import resolve_transform

GAMMA = 0.98
LONGEST_START = 1000
ACTOR = ("mlp_extractor.policy_net", "action_net", "log_std")

Horizon = int | Literal["episode"] | None
"""Branch horizon; None: PPO's independent envs, as many as the groups have members."""


class Size(NamedTuple):
    """
    How large a rollout is, and how often the bootstrap draws.

    :param n_groups: Groups; PPO has ``n_groups * n_samples`` envs.
    :param n_samples: Members of a group.
    :param n_steps: Steps of every member in a rollout.
    :param resamples: Rows of the bootstrap.
    """

    n_groups: int = 4
    n_samples: int = 4
    n_steps: int = 128
    resamples: int = 2000

    @property
    def simulator_steps(self) -> int:
        """Simulator steps of a rollout, the same for all estimators."""
        return self.n_groups * self.n_samples * self.n_steps


class Estimator(NamedTuple):
    """
    How advantages are made of a rollout.

    :param name: For the tables.
    :param horizon: Of the rollout.
    :param kind: Of HybridGRPO.
    :param beta: Of HybridGRPO's group baseline.
    :param transform: f(R).
    :param own_trace: Whether member 0's trace goes on with its own advantage at forks.
    :param same_units: Whether advantages are worth what PPO's are, so that the gradients are too.
    """

    name: str
    horizon: Horizon
    kind: AdvantageEstimator = "hybrid"
    beta: float | Literal["auto"] = "auto"
    transform: str | None = None
    own_trace: bool = False
    same_units: bool = True


# PPO comes first: its rollouts are the reference too.
ESTIMATORS = (
    Estimator("PPO", None),
    Estimator("paper (K=1, tanh)", 1, kind="paper", transform="tanh", same_units=False),
    Estimator("paper without tanh (K=1)", 1, kind="paper", same_units=False),
    Estimator("GRPO (K=1)", 1, kind="grpo", same_units=False),
    Estimator("hybrid K=1", 1),
    Estimator("hybrid K=1, own trace", 1, own_trace=True),
    Estimator("hybrid K=16", 16),
    Estimator("hybrid K=16, own trace", 16, own_trace=True),
    Estimator("hybrid K=64, β=0", 64, beta=0.0),
    Estimator("hybrid K=64", 64),
    Estimator("hybrid K=64, own trace", 64, own_trace=True),
    Estimator("hybrid K=64, β=1", 64, beta=1.0),
    Estimator("hybrid K=episode", "episode"),
)
HORIZONS = tuple(dict.fromkeys(estimator.horizon for estimator in ESTIMATORS))


class Gradients(NamedTuple):
    """
    What an estimator makes of one rollout.

    :param plain: Gradient with the advantages as they are, shape (P,).
    :param normalised: With normalised ones.
    :param beta: Share of the group baseline; NaN where there is none.
    :param variance_removed: Share of the advantages' variance that it took off; NaN where there is none.
    """

    plain: npt.NDArray[np.float32]
    normalised: npt.NDArray[np.float32]
    beta: float
    variance_removed: float


@dataclass(frozen=True)
class Frozen:
    """
    A policy as it was at one moment of a training.

    :param stage: Which moment.
    :param trained_steps: Simulator steps that the policy had been updated with.
    :param parameters: Of policy and critic.
    :param statistics: VecNormalize's, of observations and of returns.
    """

    stage: str
    trained_steps: int
    parameters: dict[str, th.Tensor]
    statistics: tuple[Any, Any]

    @classmethod
    def of(cls, model: PPO, stage: str, trained_steps: int) -> "Frozen":
        """
        Copy a policy in training.

        :param model: The model.
        :param stage: Which moment it is.
        :param trained_steps: Simulator steps that the policy has been updated with.
        :return: The copy.
        """
        env = model.get_vec_normalize_env()
        assert env is not None
        parameters = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        return cls(stage, trained_steps, parameters, (env.obs_rms.copy(), env.ret_rms.copy()))


class Collector:
    """
    Collects independent rollouts of a frozen policy.

    :param env_id: The env's id.
    :param horizon: Branch horizon, or PPO's envs.
    :param size: Size of a rollout.
    :param seed: Seed of the envs, of the actions and of where rollouts start.
    :param frozen: The policy; None leaves the one that it starts with.
    :raises CommandError: if the env cannot be trained on or branched.
    """

    def __init__(self, env_id: str, horizon: Horizon, size: Size, seed: int, frozen: Frozen | None = None) -> None:
        n_envs, n_samples = (size.n_groups * size.n_samples, 1) if horizon is None else (size.n_groups, size.n_samples)
        env = make_env(env_id, n_envs, seed)
        try:
            if not isinstance(env.observation_space, spaces.Box) or len(env.observation_space.shape) != 1:
                raise ValueError(f"observations are {env.observation_space}, needed are vectors of numbers (a Box)")
            self.env = VecNormalize(env, gamma=GAMMA, training=False)
            shape: dict[str, Any] = {"n_steps": size.n_steps, "n_samples": n_samples, "branch_horizon": horizon or 1}
            self.model = HybridGRPO("MlpPolicy", self.env, gamma=GAMMA, seed=seed, device="cpu", **shape)
        except (BranchingError, ValueError, AssertionError, NotImplementedError) as error:  # the last two are SB3's
            env.close()
            raise CommandError(f"gradients cannot be measured on {env_id}: {error}") from error
        if frozen is not None:
            self.model.policy.load_state_dict(frozen.parameters)
            self.env.obs_rms, self.env.ret_rms = frozen.statistics
        self.buffer = cast(HybridRolloutBuffer, self.model.rollout_buffer)
        self._rng = np.random.default_rng(seed)
        self._longest = self.env.get_attr("spec")[0].max_episode_steps or LONGEST_START

    def collect(self) -> None:
        """Fill the buffer with a rollout that starts at random points of fresh episodes."""
        _, callback = self.model._setup_learn(total_timesteps=2**62)  # resets; siblings will fork
        self._go_to_random_points()
        self.model.collect_rollouts(self.env, callback, self.buffer, n_rollout_steps=self.model.n_steps)

    def _go_to_random_points(self) -> None:
        """Step all envs together, and reset each one when as many steps are left as it is to go."""
        observations = cast(np.ndarray, self.model._last_obs)
        steps_E = self._rng.integers(self._longest, size=self.env.num_envs)
        for left in range(int(steps_E.max()), -1, -1):
            for index in np.flatnonzero(steps_E == left).tolist():
                raw, _ = self.env.env_method("reset", indices=index)[0]
                observations[index] = self.env.normalize_obs(raw)
            if left > 0:
                actions, _ = self.model.predict(observations)
                observations = cast(np.ndarray, self.env.step(actions)[0])
        self.model._last_obs = observations

    def gradients(self, estimators: Sequence[Estimator]) -> list[Gradients]:
        """
        Differentiate the loss of the rollout.

        :param estimators: Whose advantages to take.
        :return: What each estimator makes of the rollout.
        """
        policy, buffer = self.model.policy, self.buffer
        actor = [parameter for name, parameter in policy.named_parameters() if name.startswith(ACTOR)]
        log_prob, found = None, []
        for estimator in estimators:
            set_advantages(buffer, estimator)
            samples = buffer._get_samples(np.arange(buffer.values.size // buffer.samples_per_state))
            if log_prob is None:  # the same for all
                discrete = isinstance(self.env.action_space, spaces.Discrete)
                actions = samples.actions.long().flatten() if discrete else samples.actions
                _, log_prob, _ = evaluate_actions(policy, samples.observations, actions, buffer.samples_per_state)
            plain, normalised = (
                _gradient(log_prob, advantages, actor)
                for advantages in (samples.advantages, normalize_advantages(samples.advantages))
            )
            found.append(Gradients(plain, normalised, buffer.baseline.beta, buffer.baseline.variance_removed))
        return found


def set_advantages(buffer: HybridRolloutBuffer, estimator: Estimator) -> None:
    """
    Estimate the advantages of a collected rollout anew.

    :param buffer: The full buffer.
    :param estimator: The estimator; one of the horizon that the rollout was collected with.
    """
    buffer.advantage_estimator, buffer.group_baseline = estimator.kind, estimator.beta
    buffer.reward_transform = resolve_transform(estimator.transform, buffer.n_samples)
    buffer.forks = not estimator.own_trace  # without forks every trace is its member's own, and there is no group baseline
    buffer.baseline = Baseline(np.nan, np.nan)
    last = buffer.next_values[-1, : buffer.n_envs // buffer.samples_per_state]
    buffer.compute_returns_and_advantage(th.as_tensor(last), buffer.cut[-1])
    if estimator.own_trace:
        advantages_TEN, buffer.baseline = group_baseline(buffer._as_TEN(buffer.advantages), estimator.beta)
        buffer.advantages = buffer._as_columns(advantages_TEN)


def _gradient(log_prob: th.Tensor, advantages: th.Tensor, parameters: list[th.nn.Parameter]) -> npt.NDArray[np.float32]:
    """Gradient of -mean(A * log π), flat. The graph stays, for the next advantages."""
    parts = th.autograd.grad(log_prob, parameters, grad_outputs=-advantages / len(advantages), retain_graph=True)
    gradient: npt.NDArray[np.float32] = th.cat([part.flatten() for part in parts]).numpy()
    return gradient
