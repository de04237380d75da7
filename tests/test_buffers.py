"""Storage: what goes in comes out, once, together with what belongs to it."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_hybrid_grpo.advantages import gae_group, group_baseline, grpo_advantage, paper_advantage
from sb3_hybrid_grpo.transforms import resolve_transform
from sb3_hybrid_grpo.buffers import HybridDictRolloutBuffer, HybridRolloutBuffer

ACTIONS: list[spaces.Space[Any]] = [
    spaces.Box(-1, 1, (2,), dtype=np.float32),
    spaces.Discrete(4),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
]
VECTOR = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)


def fill(
    buffer: Any,
    rng: np.random.Generator,
    cut: np.ndarray | None = None,
    terminated: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> None:
    """
    Fill a buffer with numbers that tell where they come from: the observation of state (t, column) is t * 1000 + column,
    and each action's log-probability is t * 1000 + its own column.
    """
    t_steps, columns, n_samples = buffer.buffer_size, buffer.n_envs, buffer.n_samples
    states = columns // buffer.samples_per_state
    for t in range(t_steps):
        numbers = t * 1000 + np.arange(states)
        obs: Any = np.repeat(numbers[:, None], 3, axis=1).astype(np.float32)
        if isinstance(buffer.observation_space, spaces.Dict):
            obs = {"vector": obs, "number": numbers[:, None] % 5}
        elif isinstance(buffer.observation_space, spaces.Discrete):
            obs = numbers
        cut_NE = np.zeros((n_samples, columns // n_samples), bool) if cut is None else cut[t]
        terminated_NE = np.zeros_like(cut_NE) if terminated is None else terminated[t]
        wanted = np.flatnonzero(cut_NE & ~terminated_NE)
        reached = np.repeat(-(t * 1000.0 + wanted)[:, None], 3, axis=1) if len(wanted) else None
        if weights is not None:
            buffer.add_weights(th.as_tensor(weights[t].reshape(-1)))
        buffer.add_ends(terminated_NE, cut_NE, reached)
        buffer.add(
            obs,
            np.stack([buffer.action_space.sample() for _ in range(columns)]),
            rng.normal(size=columns),
            np.ones(columns, bool) if t == 0 or cut is None else cut[t - 1].reshape(-1),
            th.as_tensor(rng.normal(size=(states, 1)), dtype=th.float32),
            th.as_tensor(t * 1000 + np.arange(columns), dtype=th.float32),
        )
    for places, observations, _ in buffer.pending():
        buffer.set_next_values(places, th.as_tensor(observations[:, :1]))


@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("shared", [True, False])
def test_an_epoch_hands_out_every_sample_once_with_its_state(action_space: spaces.Space[Any], shared: bool) -> None:
    buffer = HybridRolloutBuffer(6, VECTOR, action_space, n_envs=2, n_samples=4, shared_states=shared)
    assert isinstance(buffer, RolloutBuffer)
    action_space.seed(0)
    rng = np.random.default_rng(0)
    fill(buffer, rng, weights=rng.random((6, 4, 2)))
    buffer.compute_returns_and_advantage(th.zeros(2 if shared else 8), np.zeros(8, bool))
    seen = []
    for batch in buffer.get(8):
        per_state = 4 if shared else 1
        assert len(batch.actions) == per_state * len(batch.observations) == 8
        for row, number in enumerate(batch.old_log_prob.numpy().astype(int)):
            t, column = divmod(number, 1000)
            state = batch.observations[row % len(batch.observations), 0].item()
            assert state == t * 1000 + (column % 2 if shared else column)
            np.testing.assert_array_equal(batch.actions[row].numpy(), buffer.actions[t, column].astype(np.float32))
            assert batch.advantages[row].item() == buffer.advantages[t, column]
            assert batch.returns[row].item() == buffer.returns[t, column]
            assert batch.old_values[row].item() == buffer.values[t, column]
            assert batch.weights[row].item() == buffer.weights[t, column]
            seen.append((t, column))
    assert sorted(seen) == [(t, column) for t in range(6) for column in range(8)]


def test_a_shared_state_is_stored_once() -> None:
    shared = HybridRolloutBuffer(6, VECTOR, ACTIONS[0], n_envs=2, n_samples=4, shared_states=True)
    apart = HybridRolloutBuffer(6, VECTOR, ACTIONS[0], n_envs=2, n_samples=4, shared_states=False)
    assert shared.observations.shape == (6, 2, 3) and apart.observations.shape == (6, 8, 3)
    assert shared.actions.shape == apart.actions.shape == (6, 8, 2)


@pytest.mark.parametrize("shared", [True, False])
def test_dict_observations(shared: bool) -> None:
    space = spaces.Dict({"vector": VECTOR, "number": spaces.Discrete(5)})
    buffer = HybridDictRolloutBuffer(6, space, ACTIONS[0], n_envs=2, n_samples=4, shared_states=shared)
    assert isinstance(buffer, DictRolloutBuffer)
    fill(buffer, np.random.default_rng(0))
    buffer.compute_returns_and_advantage(th.zeros(2 if shared else 8), np.zeros(8, bool))
    for batch in buffer.get(8):
        numbers = batch.observations["vector"][:, 0]
        np.testing.assert_array_equal(batch.observations["number"][:, 0].numpy(), numbers.numpy() % 5)
        repeated = numbers.repeat(4 if shared else 1).numpy()
        logged = batch.old_log_prob.numpy()
        np.testing.assert_array_equal(repeated // 1000, logged // 1000)


def test_discrete_observations() -> None:
    buffer = HybridRolloutBuffer(3, spaces.Discrete(9999), ACTIONS[1], n_envs=2, n_samples=3, shared_states=True)
    fill(buffer, np.random.default_rng(0))
    np.testing.assert_array_equal(buffer.observations[2, :, 0], [2000, 2001])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10_000), st.booleans())
def test_estimators_get_what_was_stored(t_steps: int, n_envs: int, n_samples: int, seed: int, shared: bool) -> None:
    """A slow loop puts the arrays (T, E, N) together cell by cell, V(s') included."""
    rng = np.random.default_rng(seed)
    shape = (t_steps, n_samples, n_envs)
    cut = rng.random(shape) < 0.4
    if shared:
        cut[:, 1:] = True  # members that share every state fork at every step
    terminated = cut & (rng.random(shape) < 0.5)
    weights = None
    if shared and seed % 2:
        weights = rng.uniform(0.1, 3, shape).astype(np.float32)
        weights[:, 0] = 1
    weights_TEN = None if weights is None or n_samples == 1 else weights.swapaxes(1, 2)
    results = {}
    for estimator in ("hybrid", "paper", "paper_per_sample", "grpo"):
        buffer = HybridRolloutBuffer(
            t_steps,
            VECTOR,
            ACTIONS[0],
            gae_lambda=0.9,
            gamma=0.8,
            n_envs=n_envs,
            n_samples=n_samples,
            shared_states=shared,
            advantage_estimator=estimator,
            group_baseline=0.5 if n_samples > 1 else "auto",
            reward_transform=resolve_transform(np.tanh, n_samples),
        )
        fill(buffer, np.random.default_rng(seed), cut, terminated, weights)
        raw = buffer.rewards.copy()
        last = rng.normal(size=n_envs if shared else n_envs * n_samples).astype(np.float32)
        buffer.compute_returns_and_advantage(th.as_tensor(last), cut[-1].reshape(-1))
        np.testing.assert_array_equal(buffer.rewards, raw)
        results[estimator] = (buffer, last)
    for estimator, (buffer, last) in results.items():
        rewards, values, next_values, ends, cuts = (np.zeros((t_steps, n_envs, n_samples), np.float32) for _ in range(5))
        for t in range(t_steps):
            for e in range(n_envs):
                for m in range(n_samples):
                    column = m * n_envs + e
                    rewards[t, e, m] = np.tanh(buffer.rewards[t, column])
                    values[t, e, m] = buffer.values[t, column]
                    ends[t, e, m], cuts[t, e, m] = terminated[t, m, e], cut[t, m, e]
                    if cut[t, m, e]:
                        next_values[t, e, m] = 0 if terminated[t, m, e] else -(t * 1000 + column)
                    elif t + 1 < t_steps:
                        next_values[t, e, m] = buffer.values[t + 1, column]
                    else:
                        next_values[t, e, m] = last[e if shared else column]
        expected: Any
        returns: Any
        if estimator == "hybrid":
            group = (rewards, values, next_values, ends.astype(bool), cuts.astype(bool))
            expected = gae_group(*group, 0.8, 0.9, weights_TEN=weights_TEN)
            returns = values + expected
            if n_samples > 1:
                expected, _ = group_baseline(expected, 0.5, weights_TEN)
        elif estimator in ("paper", "paper_per_sample"):
            starts = np.concatenate([np.ones((1, n_envs, n_samples), bool), cuts[:-1].astype(bool)])
            arguments = (rewards, values, next_values, ends.astype(bool), starts, 0.8)
            expected, returns = paper_advantage(*arguments, estimator == "paper_per_sample", weights_TEN)
        else:
            expected, returns = grpo_advantage(rewards, cuts.astype(bool), 0.8), values
        for e in range(n_envs):
            for m in range(n_samples):
                np.testing.assert_array_equal(buffer.advantages[:, m * n_envs + e], expected[:, e, m])
                np.testing.assert_array_equal(buffer.returns[:, m * n_envs + e], returns[:, e, m])


def test_values_of_states_reached_are_asked_for_in_large_batches() -> None:
    buffer = HybridRolloutBuffer(4, VECTOR, ACTIONS[0], n_envs=2, n_samples=3, shared_states=True)
    cut = np.ones((4, 3, 2), bool)
    cut[:, 0] = False
    for t in range(4):
        buffer.add_ends(np.zeros((3, 2), bool), cut[t], np.full((4, 3), float(t)))
        buffer.add(np.zeros((2, 3)), np.zeros((6, 2)), np.zeros(6), np.zeros(6), th.zeros(2, 1), th.zeros(6))
    batches = list(buffer.pending())
    assert len(batches) == 1
    places, observations, _ = batches[0]
    np.testing.assert_array_equal(observations[:, 0], np.repeat(np.arange(4), 4))
    np.testing.assert_array_equal(places, [t * 6 + column for t in range(4) for column in range(2, 6)])
    assert not list(buffer.pending())


def test_large_observations_do_not_wait_for_the_end_of_a_rollout() -> None:
    images = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    buffer = HybridRolloutBuffer(64, images, ACTIONS[0], n_envs=8, n_samples=2, shared_states=True)
    sizes: list[int] = []
    for t in range(64):
        buffer.add_ends(np.zeros((2, 8), bool), np.ones((2, 8), bool), np.full((16, 84, 84, 4), t, np.uint8))
        sizes += [len(places) for places, _, _ in buffer.pending(rest=False)]
        buffer.add(
            *(np.zeros((8, 84, 84, 4), np.uint8), np.zeros((16, 2)), np.zeros(16), np.zeros(16), th.zeros(8, 1), th.zeros(16))
        )
    left = [(places, observations) for places, observations, _ in buffer.pending()]
    assert all(0 < size * images.sample().nbytes <= 2**22 + 16 * images.sample().nbytes for size in sizes)
    assert sum(sizes) + sum(len(places) for places, _ in left) == 64 * 16
    assert len(left) == 1 and (left[0][1] == (left[0][0] // 16).reshape(-1, 1, 1, 1)).all()


def test_reset_forgets_the_last_rollout() -> None:
    buffer = HybridRolloutBuffer(2, VECTOR, ACTIONS[0], n_envs=1, n_samples=2, shared_states=False)
    fill(buffer, np.random.default_rng(0), cut=np.ones((2, 2, 1), bool), weights=np.full((2, 2, 1), 0.5))
    buffer.reset()
    assert (buffer.weights == 1).all()
    assert not buffer.cut.any() and not buffer.next_values.any() and not buffer.full and not list(buffer.pending())


def test_a_buffer_that_is_not_full_hands_out_nothing() -> None:
    buffer = HybridRolloutBuffer(2, VECTOR, ACTIONS[0], n_envs=1, n_samples=2)
    with pytest.raises(RuntimeError, match="0 of 2 steps"):
        next(buffer.get(2))
