"""Independent rollouts of a frozen policy, and each estimator's policy gradients from them."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.advantages import Baseline, group_baseline
from sb3_hybrid_grpo.buffers import AdvantageEstimator, Estimation, HybridRolloutBuffer
from sb3_hybrid_grpo.commands.cli import CommandError
from sb3_hybrid_grpo.commands.evaluation import make_env
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.transforms import Transform

GAMMA, LONGEST_START = 0.98, 1000
ACTOR = ("mlp_extractor.policy_net", "action_net", "log_std")
Horizon = int | Literal["episode"] | None  # None: PPO's independent envs, as many as the groups have members


class Size(NamedTuple):
    """Size of a rollout, and number of bootstrap resamples. PPO has ``n_groups * n_samples`` envs."""

    n_groups: int = 4
    n_samples: int = 4
    n_steps: int = 128  # of every member
    resamples: int = 2000

    @property
    def simulator_steps(self) -> int:
        """Simulator steps of a rollout, the same for all estimators."""
        return self.n_groups * self.n_samples * self.n_steps


class Estimator(NamedTuple):
    """How advantages are estimated: arguments of HybridGRPO, and two settings that HybridGRPO does not have."""

    name: str
    horizon: Horizon
    kind: AdvantageEstimator = "hybrid"
    beta: float | Literal["auto"] = "auto"
    transform: str | None = None
    own_trace: bool = False  # at forks, member 0's trace goes on with member 0's own advantage
    same_units: bool = True  # advantages, and so gradients, have the same units as PPO's


# PPO comes first: its rollouts are also the reference.
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
    """One rollout's gradients (P,) from plain and from normalised advantages, and its group baseline (NaN without one)."""

    plain: npt.NDArray[np.float32]
    normalised: npt.NDArray[np.float32]
    baseline: Baseline


class Frozen(NamedTuple):
    """A copy of a policy at one moment of a training."""

    stage: str
    trained_steps: int  # simulator steps that the policy had been updated with
    parameters: dict[str, th.Tensor]
    statistics: tuple[Any, Any]  # VecNormalize's, of observations and of returns


class _Model(HybridGRPO):
    def train(self) -> None:
        """Do not change the policy."""


class Collector(BaseCallback):
    """
    Collects independent rollouts of a frozen policy (None: a new one). The seed is for the envs, the actions and the start
    states of rollouts. CommandError if the env cannot be trained on or branched.
    """

    def __init__(self, env_id: str, horizon: Horizon, size: Size, seed: int, frozen: Frozen | None = None) -> None:
        super().__init__()
        n_envs, n_samples = (size.n_groups * size.n_samples, 1) if horizon is None else (size.n_groups, size.n_samples)
        env = make_env(env_id, n_envs, seed)
        try:
            if not isinstance(env.observation_space, spaces.Box) or len(env.observation_space.shape) != 1:
                raise ValueError(f"observations are {env.observation_space}, needed are vectors of numbers (a Box)")
            self.env = VecNormalize(env, gamma=GAMMA, training=False)
            shape: dict[str, Any] = {"n_samples": n_samples, "branch_horizon": horizon or 1, "gamma": GAMMA, "device": "cpu"}
            self.model: Any = _Model("MlpPolicy", self.env, n_steps=size.n_steps * n_samples, seed=seed, **shape)
        except (BranchingError, ValueError, AssertionError, NotImplementedError) as error:  # the last two are SB3's
            env.close()
            raise CommandError(f"gradients cannot be measured on {env_id}: {error}") from error
        if frozen is not None:
            self.model.policy.load_state_dict(frozen.parameters)
            self.env.obs_rms, self.env.ret_rms = frozen.statistics
        self._rng = np.random.default_rng(seed)
        self._longest = self.env.get_attr("spec")[0].max_episode_steps or LONGEST_START
        self._estimators: Sequence[Estimator] = ()
        self._found: list[Gradients] = []

    def collect(self, estimators: Sequence[Estimator]) -> list[Gradients]:
        """Collect a rollout that starts at random points of fresh episodes; return the gradients of each estimator."""
        self._estimators = estimators
        self.model.learn(self.model.n_envs * self.model.n_steps, callback=self)
        return self._found

    def _on_training_start(self) -> None:
        """Bring each env a random number of steps into an episode: it is reset when that many joint steps are left."""
        observations = self.model._last_obs
        steps_E = self._rng.integers(self._longest, size=self.env.num_envs)
        for left in range(int(steps_E.max()), -1, -1):
            for index in np.flatnonzero(steps_E == left).tolist():
                raw, _ = self.env.env_method("reset", indices=index)[0]
                observations[index] = self.env.normalize_obs(raw)
            if left > 0:
                actions, _ = self.model.predict(observations)
                observations = self.env.step(actions)[0]
        self.model._last_obs = observations

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy, buffer = self.model.policy, self.model.rollout_buffer
        actor = [parameter for name, parameter in policy.named_parameters() if name.startswith(ACTOR)]
        obs, actions = (th.as_tensor(one.reshape(-1, one.shape[-1])) for one in (buffer.observations, buffer.actions))
        is_discrete = isinstance(self.env.action_space, spaces.Discrete)
        _, log_prob, _ = policy.evaluate_actions(obs, actions.long().flatten() if is_discrete else actions)
        self._found = []
        for estimator in self._estimators:
            advantages = th.as_tensor(estimate(buffer, estimator, self.locals["values"], self.locals["dones"]).flatten())
            normalised = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            plain, as_trained = (_gradient(log_prob, one, actor) for one in (advantages, normalised))
            self._found.append(Gradients(plain, as_trained, buffer.baseline))


def estimate(
    buffer: HybridRolloutBuffer, estimator: Estimator, last_values: th.Tensor, dones: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """
    Estimate the advantages (T, N * E) of a full buffer, and its baseline, anew. ``last_values`` are V of the states after the
    rollout, shape (N * E,); ``dones`` marks members that were cut at the last step.
    """
    n_samples, buffer.baseline = buffer.n_samples, Baseline(np.nan, np.nan)
    transform = Transform(estimator.transform, n_samples)
    buffer.estimation = Estimation(estimator.kind, estimator.beta, transform)
    if estimator.own_trace:  # each member as a group of one
        buffer.n_samples = 1
    buffer.compute_returns_and_advantage(last_values, dones)
    buffer.n_samples = n_samples
    if estimator.own_trace:
        advantages_TEN, buffer.baseline = group_baseline(buffer.as_TEN(buffer.advantages), estimator.beta)
        buffer.advantages = advantages_TEN.swapaxes(1, 2).reshape(buffer.advantages.shape)
    return buffer.advantages


def _gradient(log_prob: th.Tensor, advantages: th.Tensor, parameters: list[th.nn.Parameter]) -> npt.NDArray[np.float32]:
    """Gradient of -mean(A * log π), flat. The graph stays, for the next advantages."""
    parts = th.autograd.grad(log_prob, parameters, grad_outputs=-advantages / len(advantages), retain_graph=True)
    gradient: npt.NDArray[np.float32] = th.cat([part.flatten() for part in parts]).numpy()
    return gradient
