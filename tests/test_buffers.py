"""Storage: what goes in comes out, once, together with what belongs to it."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_hybrid_grpo import buffers
from sb3_hybrid_grpo.advantages import gae_group, group_baseline, grpo_advantage, paper_advantage
from sb3_hybrid_grpo.buffers import AdvantageEstimator, Estimation, HybridDictRolloutBuffer, HybridRolloutBuffer
from sb3_hybrid_grpo.transforms import Transform

ACTIONS: list[spaces.Space[Any]] = [
    spaces.Box(-1, 1, (2,), dtype=np.float32),
    spaces.Discrete(4),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(3),
]
VECTOR = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)
OBSERVATIONS: list[spaces.Space[Any]] = [
    VECTOR,
    spaces.Discrete(9999),
    spaces.Dict({"vector": VECTOR, "number": spaces.Discrete(9999)}),
]


class Rollout:
    """
    A buffer with a rollout in it whose numbers tell where they come from: observation and log-probability of step t and
    column c are ``t * 1000 + c``, and V of the state that a cut member reached is ``-(t * 1000 + c)``.
    """

    def __init__(
        self, shape: tuple[int, int, int], observations: Any = VECTOR, actions: Any = ACTIONS[0], seed: int = 0
    ) -> None:
        n_steps, n_envs, n_members = shape
        n_columns = n_envs * n_members
        rng = np.random.default_rng(seed)
        self.cut = rng.random((n_steps, n_columns)) < 0.4
        self.terminated = self.cut & (rng.random(self.cut.shape) < 0.5)
        self.starts = np.concatenate([rng.random((1, n_columns)) < 0.4, self.cut[:-1]])
        kind = HybridDictRolloutBuffer if isinstance(observations, spaces.Dict) else HybridRolloutBuffer
        # the size is that of another rollout, to show that begin() counts
        self.buffer: Any = kind(3, observations, actions, gae_lambda=0.9, gamma=0.8, n_envs=1)
        self.buffer.begin(n_steps, n_envs, n_members)
        for t in range(n_steps):
            numbers = t * 1000 + np.arange(n_columns)
            obs: Any = np.repeat(numbers[:, None], 3, axis=1).astype(np.float32)
            if isinstance(observations, spaces.Dict):
                obs = {"vector": obs, "number": numbers}
            elif isinstance(observations, spaces.Discrete):
                obs = numbers
            drawn = np.stack([actions.sample() for _ in range(n_columns)])
            values, log_probs = th.as_tensor(rng.normal(size=(n_columns, 1)).astype(np.float32)), th.as_tensor(numbers)
            self.buffer.add(obs, drawn, rng.normal(size=n_columns), self.starts[t], values, log_probs)
            reached = np.flatnonzero(self.cut[t] & ~self.terminated[t])
            self.buffer.add_ends(self.terminated[t], self.cut[t], -(t * 1000.0 + reached))
        self.last_values = rng.normal(size=n_columns).astype(np.float32)

    def estimate(self, *estimation: Any) -> None:
        """Advantages as the algorithm has them made after the rollout."""
        self.buffer.estimation = Estimation(*estimation)
        self.buffer.compute_returns_and_advantage(th.as_tensor(self.last_values)[:, None], self.cut[-1])


@pytest.mark.parametrize("actions", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("observations", OBSERVATIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("batch_size", [None, 8, 7, 100])
def test_an_epoch_hands_out_every_sample_once_with_its_state(observations: Any, actions: Any, batch_size: int | None) -> None:
    rollout = Rollout((6, 2, 4), observations, actions)
    buffer = rollout.buffer
    assert isinstance(buffer, DictRolloutBuffer if isinstance(observations, spaces.Dict) else RolloutBuffer)
    rollout.estimate()
    stored = {name: getattr(buffer, name).copy() for name in ("actions", "advantages", "returns", "values")}
    for _ in range(2):  # epochs
        seen: list[int] = []
        for batch in buffer.get(batch_size):
            assert len(batch.actions) <= (batch_size or 48)
            numbers = batch.old_log_prob.numpy().astype(int)
            for obs in batch.observations.values() if isinstance(observations, spaces.Dict) else [batch.observations]:
                np.testing.assert_array_equal(obs.numpy().reshape(len(numbers), -1)[:, 0], numbers)
            places = numbers // 1000, numbers % 1000
            np.testing.assert_array_equal(batch.actions, stored["actions"][places].astype(np.float32))
            for mine, name in ((batch.advantages, "advantages"), (batch.returns, "returns"), (batch.old_values, "values")):
                np.testing.assert_array_equal(mine, stored[name][places])
            seen += numbers.tolist()
        assert sorted(seen) == [t * 1000 + column for t in range(6) for column in range(8)]


def test_two_epochs_are_in_different_orders() -> None:
    rollout = Rollout((6, 2, 4))
    rollout.estimate()
    one, other = ([int(x) for batch in rollout.buffer.get(8) for x in batch.old_log_prob] for _ in range(2))
    assert one != other != sorted(other)


@pytest.mark.parametrize("block", [2**24, 100, 1])  # the whole rollout, 8 samples, and a minibatch at once
def test_one_member_hands_out_the_minibatches_of_sb3(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_BLOCK", block)
    rollout = Rollout((6, 3, 1))
    theirs = RolloutBuffer(6, VECTOR, ACTIONS[0], gae_lambda=0.9, gamma=0.8, n_envs=3)
    ours = rollout.buffer
    for t in range(6):
        columns = (ours.rewards, ours.episode_starts, ours.values, ours.log_probs)
        rewards, starts, values, log_probs = (column[t] for column in columns)
        theirs.add(ours.observations[t], ours.actions[t], rewards, starts, th.as_tensor(values), th.as_tensor(log_probs))
    theirs.compute_returns_and_advantage(th.as_tensor(rollout.last_values), rollout.cut[-1])
    ours.terminated[:] = ours.cut  # a truncation is put into the rewards by SB3's collect_rollouts, not by its buffer
    rollout.estimate()
    for batch_size in (None, 4):
        batches = []
        for one in (ours, theirs):
            np.random.seed(3)
            batches.append(list(one.get(batch_size)))
        for mine, its in zip(*batches, strict=True):
            assert all(th.equal(a, b) for a, b in zip(mine, its, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4)),
    seed=st.integers(0, 10_000),
    estimator=st.sampled_from(["hybrid", "paper", "paper_per_sample", "grpo"]),
    transform=st.sampled_from([None, "tanh", "normalize"]),
)
def test_estimators_get_what_was_stored(shape: Any, seed: int, estimator: AdvantageEstimator, transform: str | None) -> None:
    """A slow loop puts the arrays (T, E, N) together cell by cell, V(s') included."""
    rollout = Rollout(shape, seed=seed)
    buffer = rollout.buffer
    n_steps, n_envs, n_members = shape
    beta: Any = 0.5 if n_members > 1 else "auto"
    rollout.estimate(estimator, beta, Transform(transform, n_members))
    rewards, values, next_values, ends, cuts, starts = (np.zeros(shape, dtype=np.float32) for _ in range(6))
    for t, e, m in np.ndindex(*shape):
        column = m * n_envs + e
        rewards[t, e, m], values[t, e, m] = buffer.rewards[t, column], buffer.values[t, column]
        ends[t, e, m], cuts[t, e, m] = rollout.terminated[t, column], rollout.cut[t, column]
        starts[t, e, m] = rollout.starts[t, column]
        if rollout.cut[t, column]:
            next_values[t, e, m] = 0 if rollout.terminated[t, column] else -(t * 1000 + column)
        else:
            next_values[t, e, m] = rollout.last_values[column] if t + 1 == n_steps else buffer.values[t + 1, column]
    if transform == "tanh":
        rewards = np.tanh(rewards)
    elif transform == "normalize":
        mean, deviation = rewards.mean(dtype=np.float64), rewards.std(dtype=np.float64)
        rewards = ((rewards - mean) / (deviation + 1e-8)).astype(np.float32)
    group = (rewards, values, next_values, ends.astype(bool))
    expected: Any
    if estimator == "hybrid":
        expected = gae_group(*group, cuts.astype(bool), 0.8, 0.9)
        returns = values + expected
        if n_members > 1:
            expected, baseline = group_baseline(expected, beta)
            assert buffer.baseline.beta == baseline.beta
    elif estimator == "grpo":
        expected, returns = grpo_advantage(rewards, cuts.astype(bool), 0.8), values
    else:
        expected, returns = paper_advantage(*group, starts.astype(bool), 0.8, per_sample=estimator == "paper_per_sample")
    for e, m in np.ndindex(n_envs, n_members):
        np.testing.assert_allclose(buffer.advantages[:, m * n_envs + e], expected[:, e, m], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(buffer.returns[:, m * n_envs + e], returns[:, e, m], rtol=1e-5, atol=1e-4)


def test_advantages_computed_again_have_the_changed_rewards_and_the_statistics_of_the_first_time() -> None:
    rollout = Rollout((6, 2, 3))
    transform = Transform("normalize", 3)
    rollout.estimate("hybrid", "auto", transform)
    first, statistics = rollout.buffer.advantages.copy(), repr(transform.statistics)
    rollout.estimate("hybrid", "auto", transform)
    np.testing.assert_array_equal(rollout.buffer.advantages, first)
    rollout.buffer.rewards += 5.0
    rollout.estimate("hybrid", "auto", transform)
    assert (rollout.buffer.advantages != first).any()
    assert repr(transform.statistics) == statistics
    rollout.buffer.begin(6, 2, 3)  # the next rollout teaches it again
    rollout.buffer.pos = 6
    rollout.estimate("hybrid", "auto", transform)
    assert repr(transform.statistics) != statistics


@pytest.mark.parametrize("after", [(4, 2, 3), (12, 2, 1)])
def test_a_rollout_begins_empty_and_in_its_own_shape(after: tuple[int, int, int]) -> None:
    buffer = Rollout((4, 2, 3)).buffer
    buffer.begin(*after)
    assert not buffer.full and buffer.pos == 0 and buffer.n_samples == after[2]
    for name in ("cut", "terminated", "next_values", "rewards", "values", "episode_starts", "log_probs"):
        array = getattr(buffer, name)
        assert array.shape == (after[0], after[1] * after[2]) and not array.any()
    assert buffer.baseline == (0.0, 0.0)


def test_a_view_by_members_is_writable() -> None:
    buffer = Rollout((4, 2, 3)).buffer
    buffer.as_TEN(buffer.rewards)[1, 0, 2] = 77.0
    assert buffer.rewards[1, 2 * 2 + 0] == 77.0
    assert buffer.as_TEN(buffer.observations).shape == (4, 2, 3, 3)


@pytest.mark.parametrize("is_dict", [False, True])
def test_masks_belong_to_their_samples(is_dict: bool) -> None:
    kind = buffers.MaskableHybridDictRolloutBuffer if is_dict else buffers.MaskableHybridRolloutBuffer
    space: Any = OBSERVATIONS[2] if is_dict else VECTOR
    buffer: Any = kind(1, space, spaces.Discrete(6), n_envs=1)
    buffer.begin(5, 2, 3)
    rng = np.random.default_rng(0)
    for t in range(5):
        masks = rng.random((6, 6)) < 0.5
        numbers = masks @ 2 ** np.arange(6)  # which tell the mask
        obs: Any = np.repeat(numbers[:, None], 3, axis=1)
        buffer.add(
            {"vector": obs, "number": numbers} if is_dict else obs,
            *(np.zeros(6), np.zeros(6), np.full(6, t == 0), th.zeros(6, 1), th.zeros(6)),
            action_masks=masks,
        )
        buffer.add_ends(np.zeros(6, bool), np.zeros(6, bool), np.empty(0))
    buffer.compute_returns_and_advantage(th.zeros(6), np.zeros(6, bool))
    for batch in buffer.get(7):
        numbers = (batch.observations["vector"] if is_dict else batch.observations)[:, 0].int()
        np.testing.assert_array_equal(batch.action_masks @ 2.0 ** th.arange(6), numbers)


def test_sequences_begin_at_forks_with_the_memory_of_the_step_and_only_episodes_clear_it() -> None:
    n_steps, n_envs, n_members, size = 6, 2, 2, 3
    buffer: Any = buffers.RecurrentHybridRolloutBuffer(1, VECTOR, ACTIONS[0], (1, 1, 9, size), n_envs=9)
    buffer.begin(n_steps, n_envs, n_members)
    starts = np.zeros((n_steps, 4), dtype=bool)
    starts[0] = True
    starts[3, [1, 3]] = starts[4, 2] = True  # an episode of env 1 with its sibling; a fork in mid-episode
    forks = np.zeros_like(starts)
    forks[4, 2] = True
    for t in range(n_steps):
        numbers = t * 1000 + np.arange(4)
        memory = tuple(th.full((1, 4, size), 0.0) + th.as_tensor(numbers)[None, :, None] for _ in range(2))
        values = (th.zeros(4, 1), th.as_tensor(numbers))
        states = RNNStates(memory, memory)
        buffer.add(
            np.repeat(numbers[:, None], 3, axis=1), np.zeros((4, 2)), np.zeros(4), starts[t], *values, lstm_states=states
        )
        buffer.forks[t] = forks[t]
        buffer.add_ends(np.zeros(4, bool), starts[(t + 1) % n_steps], np.zeros(int(starts[(t + 1) % n_steps].sum())))
    buffer.compute_returns_and_advantage(th.zeros(4), np.zeros(4, bool))
    seen: list[int] = []
    for batch in buffer.get(5):
        memories = batch.lstm_states.pi[0]
        rows = batch.observations.reshape(memories.shape[1], -1, 3)[:, :, 0].int().numpy()
        in_use = batch.mask.reshape(rows.shape).bool().numpy()
        begins = batch.episode_starts.reshape(rows.shape).bool().numpy()
        np.testing.assert_array_equal(memories[0, :, 0], rows[:, 0])
        for row, used, begin in zip(rows, in_use, begins, strict=True):
            numbers = row[used]
            assert (np.diff(numbers) == 1000).all()
            places = numbers // 1000, numbers % 1000
            np.testing.assert_array_equal(begin[used], starts[places] & ~forks[places])
            assert not starts[places][1:].any()  # a start is at the beginning of a sequence
            seen += numbers.tolist()
    assert sorted(seen) == [t * 1000 + column for t in range(n_steps) for column in range(4)]
