"""A swap of PPO for HybridGRPO costs as many steps of the simulator, and whoever counts steps sees as many."""

import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common import callbacks
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable

N_STEPS = 64
SMALL: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 64, "n_epochs": 1, "seed": 0}
GROUPED: dict[str, Any] = {"n_samples": 4, "branch_horizon": 16}


class Clock(gym.Env[Any, Any]):
    """
    Shows how many steps its episode has; draws noise, so that "auto" takes groups.

    :param length: Steps of an episode; the members end it in other steps, for an action of 1 counts twice
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 30) -> None:
        self.length, self.t = length, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1 + int(action)
        noise = float(self.np_random.normal())
        seen = np.array([self.t, noise], np.float32)
        return seen, noise + int(action), False, self.t >= self.length, {"t": self.t}


class Counted(Clock):
    """Counts the steps of all envs and their copies in this process."""

    steps: list[int] = [0]  # noqa: RUF012

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Counted.steps[0] += 1
        return super().step(action)


class Watch(callbacks.BaseCallback):
    """Notes what callbacks see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.rollouts: list[int] = []
        self.counted: list[tuple[int, int]] = []

    def _on_rollout_start(self) -> None:
        self.counted.append((self.model.num_timesteps, Counted.steps[0]))

    def _on_step(self) -> bool:
        self.seen.append({**self.locals, "num_timesteps": self.num_timesteps})
        return True

    def _on_rollout_end(self) -> None:
        self._on_rollout_start()
        self.rollouts.append(self.locals["rollout_buffer"].rewards.size)


def trained(algorithm: Any, env: VecEnv, total: int, callback: Any = None, **kwargs: Any) -> Any:
    return algorithm("MlpPolicy", env, **{**SMALL, **kwargs}).learn(total, callback=callback)


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("n_samples", [1, 2, 4])
@pytest.mark.parametrize("horizon", [1, 16, 64, "auto"])
def test_as_many_steps_updates_samples_and_calls_as_ppo(n_envs: int, n_samples: int, horizon: Any) -> None:
    ours, theirs = Watch(), Watch()
    total = 3 * N_STEPS * n_envs - 5
    options = {"n_samples": n_samples, "branch_horizon": horizon}
    model = trained(HybridGRPO, make_vec_env(Counted, n_envs), total, ours, branching_check=False, **options)
    ppo = trained(PPO, make_vec_env(Counted, n_envs), total, theirs)
    assert model.num_timesteps == ppo.num_timesteps
    assert model._n_updates == ppo._n_updates == 3
    assert ours.rollouts == theirs.rollouts
    assert ours.n_calls == theirs.n_calls
    assert [one["num_timesteps"] for one in ours.seen] == [one["num_timesteps"] for one in theirs.seen]
    counted, stepped = np.subtract(ours.counted[-1], ours.counted[-2])  # the last rollout
    assert counted == stepped == N_STEPS * n_envs


def test_a_selected_action_that_is_taken_again_is_counted_too() -> None:
    watch = Watch()
    options = {"n_samples": 4, "branch_horizon": 1, "action_selection": "greedy", "branching_check": False}
    trained(HybridGRPO, make_vec_env(Counted, 2), 500, watch, **options)
    counted, stepped = np.subtract(watch.counted[-1], watch.counted[-2])
    assert counted == stepped == 2 * N_STEPS * 5 // 4
    assert watch.rollouts[-1] == 2 * N_STEPS


@pytest.mark.parametrize("in_processes", [False, True])
def test_each_member_is_shown_with_its_own_rows(in_processes: bool) -> None:
    watch = Watch()
    how: dict[str, Any] = {"vec_env_cls": SubprocVecEnv, "wrapper_class": make_branchable} if in_processes else {}
    env = VecNormalize(make_vec_env(Clock, 2, **how), norm_obs=False, norm_reward=False)
    trained(HybridGRPO, env, 2 * N_STEPS, watch, branching_check=False, **GROUPED)
    env.close()
    for place, seen in enumerate(watch.seen):
        member, infos = place % 4, seen["infos"]
        assert [info.get("group_member", 0) for info in infos] == [member, member]
        for name in ("obs_tensor", "new_obs", "actions", "clipped_actions", "rewards", "dones", "values", "log_probs"):
            assert len(seen[name]) == 2, name
        for e, info in enumerate(infos):
            done = bool(seen["dones"][e])
            assert done == (info["t"] >= 30)
            assert ("terminal_observation" in info) == done
            reached = info["terminal_observation"] if done else seen["new_obs"][e]
            assert reached[0] == info["t"]  # also where a sibling forks next: a fork ends no episode
            if member:
                assert "episode" not in info
                assert info.get("TimeLimit.truncated", False) == done
                assert ("TimeLimit.truncated" in info) == done
            if not done and info["t"] > 2:
                assert info["t"] == seen["obs_tensor"][e, 0] + 1 + seen["actions"][e]
            if done and member:
                assert seen["new_obs"][e, 0] == watch.seen[place - member]["new_obs"][e, 0]  # where it forks


class Bonus(callbacks.BaseCallback):
    """Adds to the rewards, in place or not."""

    def __init__(self, shape: Any = None, replaces: bool = False) -> None:
        super().__init__()
        self.shape, self.replaces, self.share = shape, replaces, 0.0

    def _on_step(self) -> bool:
        if self.shape is not None:
            self.locals["rewards"] = np.zeros(self.shape)
        elif self.replaces:
            self.locals["rewards"] = self.locals["rewards"] + 100
        else:
            self.locals["rewards"] += 100
        return True

    def _on_rollout_end(self) -> None:
        self.share = float(np.mean(self.locals["rollout_buffer"].rewards > 50))


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("in_a_list", [False, True])
@pytest.mark.parametrize("options", [{}, {"n_samples": 1}, GROUPED])
def test_what_a_callback_adds_to_rewards_reaches_all_samples(options: Any, in_a_list: bool, replaces: bool) -> None:
    bonus = Bonus(replaces=replaces)
    trained(HybridGRPO, make_vec_env(Clock, 2), 2 * N_STEPS, [bonus, Watch()] if in_a_list else bonus, **options)
    assert bonus.share == 1.0


def test_rewards_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r'locals\["rewards"\] to an array of shape \(3,\).*shape \(2,\).*in place'):
        trained(HybridGRPO, make_vec_env(Clock, 2), 2 * N_STEPS, Bonus(shape=3), **GROUPED)


class Recomputed(callbacks.BaseCallback):
    """Changes the rewards of a rollout when it is over, as some curiosity bonuses do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        self.before = buffer.returns.copy()
        buffer.compute_returns_and_advantage(last_values=self.locals["values"], dones=self.locals["dones"])
        np.testing.assert_array_equal(buffer.returns, self.before)
        buffer.rewards += 100
        policy: Any = self.model.policy
        values = policy.predict_values(policy.obs_to_tensor(self.locals["new_obs"])[0]).detach()
        buffer.compute_returns_and_advantage(last_values=values, dones=self.locals["dones"])
        self.more = float((buffer.returns - self.before).min())


@pytest.mark.parametrize("options", [{}, {"reward_transform": "normalize"}, GROUPED])
def test_advantages_can_be_computed_again_when_a_rollout_ends(options: Any) -> None:
    again = Recomputed()
    trained(HybridGRPO, make_vec_env(Clock, 2), 2 * N_STEPS, again, **options)
    assert again.more > 0


@pytest.mark.parametrize("options", [{}, GROUPED])
def test_evaluations_and_checkpoints_come_when_ppo_has_them(options: Any, tmp_path: Path) -> None:
    found = []
    for name, algorithm, own in (("ours", HybridGRPO, options), ("theirs", PPO, {})):
        folder = tmp_path / name
        evaluated = callbacks.EvalCallback(
            make_vec_env(Clock), eval_freq=40, n_eval_episodes=1, log_path=str(folder), verbose=0
        )
        every = callbacks.EveryNTimesteps(100, callbacks.CheckpointCallback(1, str(folder), name_prefix="every"))
        saved = callbacks.CheckpointCallback(50, str(folder))
        trained(algorithm, make_vec_env(Clock, 2), 6 * N_STEPS, [evaluated, saved, every], **own)
        times = np.load(folder / "evaluations.npz")["timesteps"].tolist()
        found.append((times, sorted(path.name for path in folder.iterdir())))
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [{}, GROUPED])
def test_stopping_callbacks_stop_at_a_step_of_the_simulator(options: Any) -> None:
    env = make_vec_env(Clock, 2)
    watch = Watch()
    episodes = callbacks.StopTrainingOnMaxEpisodes(3)  # six in two envs
    model = trained(HybridGRPO, env, 10_000, [watch, episodes], **options)
    ended = np.cumsum([one["dones"].sum() for one in watch.seen])
    assert ended[-1] >= 6 > ended[-2]
    assert model.num_timesteps == 2 * len(watch.seen)

    stop = callbacks.StopTrainingOnRewardThreshold(-1e9)
    evaluated = callbacks.EvalCallback(make_vec_env(Clock), callback_on_new_best=stop, eval_freq=6, verbose=0)
    assert trained(HybridGRPO, env, 10_000, evaluated, **options).num_timesteps == 12


def test_a_training_can_end_at_the_call_of_a_sibling_and_go_on() -> None:
    model = trained(HybridGRPO, make_vec_env(Clock, 2), 10_000, lambda names, _: names["self"].num_timesteps < 84, **GROUPED)
    assert model.num_timesteps == 84  # the 42nd call: the second sibling of the 11th step
    assert model.num_executed_steps == 22
    model.learn(2 * N_STEPS, reset_num_timesteps=False)
    assert model.num_timesteps == 84 + 2 * N_STEPS
    assert model._n_updates == 1


def test_the_progress_bar_ends_where_ppo_s_ends() -> None:
    ends = []
    for algorithm, own in ((HybridGRPO, GROUPED), (HybridGRPO, {}), (PPO, {})):
        bar = callbacks.ProgressBarCallback()
        trained(algorithm, make_vec_env(Clock, 2), 4 * N_STEPS, bar, **own)
        ends.append((bar.pbar.n, bar.pbar.total))
    assert ends == [(4 * N_STEPS, 4 * N_STEPS)] * 3


class Notes(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.steps.append(step)
        self.values.append(dict(key_values))

    def close(self) -> None: ...


@pytest.mark.parametrize("options", [{}, GROUPED])
def test_logs_and_schedules_have_ppo_s_x_axis(options: Any) -> None:
    logged = []
    runs: list[tuple[Any, Any]] = [(HybridGRPO, options), (PPO, {})]
    for algorithm, own in runs:
        notes = Notes()
        schedules: dict[str, Any] = {"learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.2 * left}
        model = algorithm("MlpPolicy", make_vec_env(Clock, 2), **SMALL, **schedules, **own)
        model.set_logger(Logger(None, [notes]))
        model.learn(6 * N_STEPS)
        model.learn(4 * N_STEPS, reset_num_timesteps=False)
        names = ("train/learning_rate", "train/clip_range", "time/total_timesteps")
        logged.append((notes.steps, [[one.get(name) for name in names] for one in notes.values]))
        if algorithm is HybridGRPO:
            assert "time/simulator_steps" not in notes.values[0]
            executed = [one["time/executed_steps"] for one in notes.values]
            assert executed == sorted(executed) and executed[-1] == model.num_executed_steps
            assert model.num_executed_steps == (160 if own else model.num_executed_steps)
    assert logged[0] == logged[1]


def test_tensorboard_has_the_steps_of_the_simulator(tmp_path: Path) -> None:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    trained(HybridGRPO, make_vec_env(Clock, 2), 4 * N_STEPS, tensorboard_log=str(tmp_path), **GROUPED)
    events = accumulator.EventAccumulator(str(tmp_path / "HybridGRPO_1"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("time/executed_steps")] == [(128, 32), (256, 64)]


def test_steps_that_do_not_divide_are_said_once_and_counted_as_they_are() -> None:
    for n_steps, samples in ((66, 64), (32, 64), (8, 32)):
        with pytest.warns(UserWarning, match=f"Received n_steps={n_steps} with n_samples=4: .* {samples} samples") as caught:
            model = HybridGRPO(
                "MlpPolicy", make_vec_env(Clock, 2), **{**SMALL, "n_steps": n_steps, "batch_size": 8}, **GROUPED
            )
            model.learn(4 * samples)
        assert len([one for one in caught if "n_samples" in str(one.message)]) == 1
        assert (model.num_timesteps, model._n_updates) == (4 * samples, 2)
    with pytest.raises(ValueError, match="Received n_steps=3 with n_samples=4: "):
        HybridGRPO("MlpPolicy", make_vec_env(Clock, 2), **{**SMALL, "n_steps": 3}, **GROUPED)
