"""Which of the actions tried is executed, and that it leads to what was tried."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.errors import BranchingError
from sb3_hybrid_grpo.selection import choose_by_value, select_actions
from tests.toy_envs import NoisyWalk, walk

SMALL: dict[str, Any] = {"n_steps": 96, "batch_size": 24, "n_epochs": 1, "seed": 0, "branch_horizon": 1, "n_samples": 4}
SCORES_NE = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, -1.0]])
NONE_E = np.empty(0)


def test_greedy_takes_the_best_and_of_equal_ones_the_first() -> None:
    assert select_actions(SCORES_NE, "greedy", 1.0, NONE_E).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_softmax_draws_by_its_probabilities(temperature: float) -> None:
    draws = 40_000
    uniform = np.random.default_rng(0).random((draws, 2))
    chosen = np.array([select_actions(SCORES_NE, "softmax", temperature, row) for row in uniform[:4000]])
    weights = np.exp(SCORES_NE / temperature)
    for e in range(2):
        shares = np.bincount(chosen[:, e], minlength=3) / len(chosen)
        assert shares == pytest.approx(weights[:, e] / weights[:, e].sum(), abs=0.03)


def test_softmax_survives_extremes() -> None:
    huge_NE = np.array([[1e30], [0.0]], dtype=np.float32)
    assert select_actions(huge_NE, "softmax", 1e-3, np.array([0.999999])).tolist() == [0]
    assert select_actions(np.zeros((3, 1)), "softmax", 1.0, np.array([1.0])).tolist() == [2]


class Bandit(gym.Env[Any, Any]):
    """The reward is the action; the state counts what was executed."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,))
        self.action_space = spaces.Discrete(50)
        self.executed: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.executed.append(int(action))
        return np.array([len(self.executed)], np.float32), float(action), False, False, {}


def trained(env: Any, **kwargs: Any) -> HybridGRPO:
    return HybridGRPO("MlpPolicy", env, **{**SMALL, **kwargs}).learn(96)


def test_greedy_executes_the_action_that_is_worth_most() -> None:
    """gamma = 0: the value is the reward, and so the action."""
    env = Bandit()
    model = trained(env, action_selection="greedy", gamma=0.0)
    actions = executed_and_others(model)
    assert (actions[:, 0] == actions.max(axis=1)).all()
    assert (actions[:, 0] > actions[:, 1:].min(axis=1)).any()
    assert env.executed[-24:] == actions[:, 0].astype(int).tolist()  # siblings left no trace
    assert np.array_equal(model.rollout_buffer.rewards, actions)


def test_f_is_what_values_are_compared_by() -> None:
    model = trained(Bandit(), action_selection="greedy", gamma=0.0, reward_transform=lambda rewards: -rewards)
    actions = executed_and_others(model)
    assert (actions[:, 0] == actions.min(axis=1)).all()


def test_the_critic_is_asked_about_the_states_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def choose(model: Any, observations: Any, rewards_NE: np.ndarray, terminated_NE: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += 1
        chosen = choose_by_value(model, observations, rewards_NE, terminated_NE)
        with th.no_grad():
            values = model.policy.predict_values(th.as_tensor(observations)).numpy().reshape(4, 2)
        assert (chosen == (rewards_NE + 0.9 * values * ~terminated_NE).argmax(axis=0)).all()
        return chosen

    monkeypatch.setattr("sb3_hybrid_grpo.group_rollouts.choose_by_value", choose)
    env = make_vec_env(walk, n_envs=2)
    HybridGRPO("MlpPolicy", env, **{**SMALL, "batch_size": 48}, action_selection="greedy", gamma=0.9).learn(96)
    assert asked > 0


def executed_and_others(model: HybridGRPO) -> np.ndarray:
    """Actions of the last rollout, one env's members in columns: an update leaves them column by column."""
    columns: np.ndarray = model.rollout_buffer.actions.reshape(4, 24).T
    return columns


def stacked(kind: str) -> VecEnv:
    if kind == "processes":
        return make_vec_env(walk, n_envs=2, seed=1, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    env: VecEnv = make_vec_env(walk, n_envs=2, seed=1)
    if kind == "normalised":
        return VecNormalize(env)
    return VecFrameStack(env, 3) if kind == "stacked" else VecNormalize(VecFrameStack(env, 3))


@pytest.mark.parametrize("selection", ["greedy", "softmax"])
@pytest.mark.parametrize("kind", ["normalised", "stacked", "both", "processes"])
def test_what_is_executed_is_what_was_tried(kind: str, selection: str) -> None:
    """A difference would be an error; episodes end in the rollouts, terminated and truncated."""
    env = stacked(kind)
    model = trained(env, action_selection=selection, batch_size=48)
    assert model.num_timesteps == 5 * model.num_executed_steps > 0
    env.close()


def test_log_probs_belong_to_their_actions() -> None:
    class Frozen(HybridGRPO):
        def train(self) -> None:
            pass

    model = Frozen("MlpPolicy", make_vec_env(walk, n_envs=2, seed=1), **{**SMALL, "batch_size": 48}, action_selection="greedy")
    model.learn(96)
    (samples,) = model.rollout_buffer.get()
    _, log_probs, _ = model.policy.evaluate_actions(samples.observations, samples.actions)
    assert th.allclose(log_probs, samples.old_log_prob, atol=1e-5)


def test_an_env_that_is_not_exact_is_found_out() -> None:
    class Drifting(NoisyWalk):
        steps = 0  # of the class: a snapshot does not see it

        def step(self, action: Any) -> Any:
            Drifting.steps += 1
            observation, reward, *flags = super().step(action)
            return observation, reward + max(0, Drifting.steps - 40), *flags  # after the trial has passed

    with pytest.raises(BranchingError, match=r"Env 0 is not branched exactly: at step .* reward"):
        trained(Drifting(bound=99), action_selection="greedy", branching_check=False)


def test_callbacks_see_what_was_executed() -> None:
    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            assert self.locals["rewards"].tolist() == self.locals["actions"].flatten().tolist()
            return True

    HybridGRPO("MlpPolicy", Bandit(), **SMALL, action_selection="greedy").learn(96, callback=Watch())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_selection": "best"}, "must be one of 'on_policy', 'greedy', 'softmax'"),
        ({"action_selection": "greedy", "branch_horizon": 8}, "in other states"),
        ({"action_selection": "greedy", "branch_horizon": "auto"}, "in other states"),
        ({"action_selection": "softmax", "n_samples": 1}, "several actions"),
        ({"action_selection": "greedy", "advantage_estimator": "grpo"}, "no critic to choose by"),
        ({"action_selection": "softmax", "selection_temperature": 0.0}, "greater than 0"),
        ({"action_selection": "greedy", "selection_temperature": 2.0}, "has no effect"),
        ({"selection_temperature": 2.0}, "has no effect"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridGRPO("MlpPolicy", walk(), **{**SMALL, **changes})
