"""Policies with a memory: what members remember at forks and ends, and sb3-contrib's RecurrentPPO with one member."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_hybrid_grpo import RecurrentHybridGRPO, make_branchable
from tests.test_parity_with_ppo import assert_equal, trained
from tests.toy_envs import walk

SMALL: dict[str, Any] = {"n_steps": 72, "n_epochs": 1, "batch_size": 32, "seed": 0, "policy_kwargs": {"lstm_hidden_size": 8}}
KINDS: list[dict[str, Any]] = [{}, {"shared_lstm": True, "enable_critic_lstm": False}, {"enable_critic_lstm": False}]


class NoVelocity(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole's position and angle alone: how fast they change has to be remembered."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 2]]


@pytest.mark.parametrize(("env_id", "n_envs"), [("CartPole-v1", 1), ("CartPole-v1", 3), ("Pendulum-v1", 2)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_member_is_recurrent_ppo(env_id: str, n_envs: int, kind: dict[str, Any]) -> None:
    def run(algorithm: Any, **kwargs: Any) -> list[np.ndarray]:
        policy = {"lstm_hidden_size": 8, "n_lstm_layers": 2, **kind}
        arguments = {"policy": "MlpLstmPolicy", "policy_kwargs": policy, "batch_size": 50, **kwargs}
        return trained(algorithm, lambda: make_vec_env(env_id, n_envs=n_envs), 100, **arguments)

    assert_equal(run(RecurrentHybridGRPO, n_samples=1), run(RecurrentPPO))


class Untrained(RecurrentHybridGRPO):
    """Leaves its buffer as the rollout filled it."""

    def train(self) -> None: ...


def slow_memories(model: RecurrentHybridGRPO) -> np.ndarray:
    """What each member must remember at each step, from what it saw in its own past alone, ``(T, N * E, hidden size)``."""
    buffer: Any = model.rollout_buffer
    n_envs, n_columns = buffer.n_envs // buffer.n_samples, buffer.n_envs
    hidden = np.zeros((buffer.buffer_size, n_columns, model.policy.lstm_actor.hidden_size), np.float32)

    def past(t: int, column: int) -> list[np.ndarray]:
        """Observations since its episode began, this one not included."""
        seen: list[np.ndarray] = []
        while True:
            if buffer.episode_starts[t, column]:
                if column < n_envs:
                    break
                column %= n_envs  # forked: the past is member 0's
                continue
            if t == 0:
                break
            t -= 1
            seen.insert(0, buffer.observations[t, column])
        return seen

    with th.no_grad():
        for t in range(buffer.buffer_size):
            for column in range(n_columns):
                seen = past(t, column)
                if seen:
                    features = model.policy.extract_features(th.as_tensor(np.array(seen)))
                    features = features[0] if isinstance(features, tuple) else features
                    _, (state, _) = model.policy.lstm_actor(features[:, None])
                    hidden[t, column] = state[0, 0].numpy()
    return hidden


@pytest.mark.parametrize("horizon", [1, 5, "episode"])
def test_members_remember_their_own_past_and_forks_that_of_member_0(horizon: Any) -> None:
    env = make_vec_env(walk, n_envs=2, seed=1, env_kwargs={"max_steps": 9})
    model = Untrained("MlpLstmPolicy", env, n_samples=3, branch_horizon=horizon, **SMALL)
    model.learn(48)
    buffer: Any = model.rollout_buffer
    assert buffer.episode_starts[1:, 2:].any()
    # the policy clears the memory where an episode begins; a fork is none
    kept = 1 - buffer.episode_starts * (1 - buffer.forks)
    np.testing.assert_allclose(buffer.hidden_states_pi[:, 0] * kept[..., None], slow_memories(model), atol=1e-6)


@pytest.mark.parametrize("horizon", [1, 5])
def test_the_loss_sees_what_was_seen_when_acting(horizon: Any) -> None:
    """Before an update, log-probabilities and values of every minibatch are those of the rollout."""
    env = make_vec_env(walk, n_envs=2, seed=1, env_kwargs={"max_steps": 9})
    model = Untrained("MlpLstmPolicy", env, n_samples=3, branch_horizon=horizon, **SMALL)
    model.learn(48)
    seen = 0
    for batch in model.rollout_buffer.get(37):
        discrete = isinstance(model.action_space, spaces.Discrete)
        actions = batch.actions.long().flatten() if discrete else batch.actions
        memory, starts, in_use = batch.lstm_states, batch.episode_starts, batch.mask > 0
        values, log_prob, _ = model.policy.evaluate_actions(batch.observations, actions, memory, starts)
        np.testing.assert_allclose(log_prob.detach()[in_use], batch.old_log_prob[in_use], atol=1e-5)
        np.testing.assert_allclose(values.detach().flatten()[in_use], batch.old_values[in_use], atol=1e-5)
        seen += int(in_use.sum())
    assert seen == 24 * 6


@pytest.mark.parametrize("horizon", [1, 5, "episode", "auto"])
def test_every_horizon_trains_in_processes_and_under_normalisation(horizon: Any) -> None:
    env = make_vec_env(walk, 2, seed=0, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    model = RecurrentHybridGRPO("MlpLstmPolicy", VecNormalize(env), branch_horizon=horizon, **SMALL)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(144 * 3)
    env.close()
    assert any(not th.equal(one, other) for one, other in zip(before, model.policy.parameters(), strict=True))


def test_dict_observations_and_saving(tmp_path: Path) -> None:
    def make() -> VecEnv:
        return make_vec_env(lambda: gym.wrappers.FlattenObservation(gym.make("CartPole-v1")), 2, seed=0)

    model = RecurrentHybridGRPO("MlpLstmPolicy", make(), **SMALL).learn(96)
    model.save(tmp_path / "model")
    loaded = RecurrentHybridGRPO.load(tmp_path / "model", env=make())
    observation = np.array([[0.1, 0.0, 0.0, 0.0]], np.float32)
    action, state = loaded.predict(observation, deterministic=True)
    again, same = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, again)
    np.testing.assert_array_equal(state[0], same[0])  # type: ignore[index]
    before = loaded.num_timesteps
    loaded.learn(96, reset_num_timesteps=False)
    assert loaded.num_timesteps >= before + 96


def test_actions_are_not_selected() -> None:
    with pytest.raises(ValueError, match="action_selection='greedy'"):
        RecurrentHybridGRPO("MlpLstmPolicy", "CartPole-v1", branch_horizon=1, action_selection="greedy", **SMALL)
    model = RecurrentHybridGRPO("MlpLstmPolicy", "CartPole-v1", branch_horizon=1, **SMALL)
    model.action_selection = "greedy"
    with pytest.raises(ValueError, match="action_selection='greedy'"):
        model.learn(1)


@pytest.mark.slow
def test_learns_cartpole_without_velocities() -> None:
    """A policy without a memory stays at about 40 here."""
    env = make_vec_env("CartPole-v1", 4, seed=0, wrapper_class=NoVelocity)
    policy = {"lstm_hidden_size": 32}
    model = RecurrentHybridGRPO(
        "MlpLstmPolicy", env, learning_rate=2e-3, gamma=0.98, policy_kwargs=policy, seed=0, n_samples=2, n_steps=256
    ).learn(16_384)
    score, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 1, seed=9, wrapper_class=NoVelocity), 10)
    assert float(score) > 100  # type: ignore[arg-type]
