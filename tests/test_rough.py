"""What may go wrong in a long training: envs that fail, processes that are killed, disks that are full."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecCheckNan, VecNormalize

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching import Groups
from sb3_hybrid_grpo.errors import BranchingError
from tests.test_hybrid_grpo import SMALL
from tests.toy_envs import NoisyWalk, walk


class Failing(NoisyWalk):
    """
    Fails in every step from a certain one on.

    :param how: In what way
    :param at: From which step on
    """

    def __init__(self, how: str, at: int = 9) -> None:
        super().__init__(bound=99)
        self.how, self.at, self.steps = how, at, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, *rest = super().step(action)
        if self.steps < self.at:
            return observation, reward, *rest
        if self.how == "raise":
            raise ZeroDivisionError("broken")
        if self.how == "die":
            os._exit(77)
        if self.how == "nan":
            return observation, float("nan"), *rest
        return np.zeros(5 if self.how == "large" else 1, dtype=np.float32), reward, *rest


MESSAGES = {
    "raise": r"At step 9 of the training, the step of member 1 \(a sibling\) of env 1 failed: ZeroDivisionError\('broken'\)",
    "die": "At step 9 of the training, the process of env 1 died while it stepped the env's siblings, members 1 and on",
    "nan": r"reward of member 1 \(a sibling\) of env 1 is NaN at step 9",
    "large": r"observations have the shape \(2,\) and \(5,\), where the env's observation_space has \(2,\).*check_env",
    "small": r"observations have the shape \(1,\) and \(2,\), where the env's observation_space has \(2,\).*check_env",
}


def failure(how: str, vec_env: Any, **options: Any) -> str:
    """Train where the second of two envs fails; what the error says, which comes at once."""
    env = vec_env([lambda: make_branchable(Failing(how, at=10**9)), lambda: make_branchable(Failing(how))])
    start = time.monotonic()
    with pytest.raises(BranchingError) as error:
        HybridGRPO("MlpPolicy", env, branching_check=False, **{**SMALL, "branch_horizon": 8, **options}).learn(256)
    assert time.monotonic() - start < 30
    for process in getattr(env, "processes", []):
        process.terminate()
    return str(error.value)


def processes(envs: list[Any]) -> SubprocVecEnv:
    return SubprocVecEnv(envs, start_method="fork")  # which is made in no time


@pytest.mark.parametrize(
    ("how", "vec_env"),
    [*((how, processes) for how in MESSAGES), *((how, DummyVecEnv) for how in MESSAGES if how not in ("die", "raise"))],
)
def test_an_env_that_fails_gives_one_clear_error(how: str, vec_env: Any) -> None:
    assert re.search(MESSAGES[how], failure(how, vec_env))


def test_an_exception_of_the_executed_member_is_left_alone() -> None:
    env = DummyVecEnv([lambda: Failing("raise")])
    with pytest.raises(ZeroDivisionError, match="broken"):
        HybridGRPO("MlpPolicy", env, branching_check=False, **{**SMALL, "branch_horizon": 8}).learn(256)


class FailsAsSibling(NoisyWalk):
    """Fails in one sibling alone, which the action tells."""

    def step(self, action: Any) -> Any:
        if np.asarray(action).mean() > 0.5:
            raise ZeroDivisionError("broken")
        return super().step(action)


def test_an_exception_of_a_sibling_is_the_cause_of_the_error() -> None:
    groups = Groups(DummyVecEnv([FailsAsSibling]), 2, 8)
    groups.env.reset()
    groups.start(True)
    with pytest.raises(BranchingError, match=r"member 1 \(a sibling\) of env 0 failed") as caught:
        groups.step(np.array([[[0.0, 0.0]], [[1.0, 1.0]]], dtype=np.float32))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("how", ["raise", "die"])
@pytest.mark.parametrize("vec_env", [SubprocVecEnv, processes])  # forked ones hold the pipes of each other open
def test_a_process_that_ends_in_the_executed_step_is_named(how: str, vec_env: Any) -> None:
    message = "At step 9 of the training, the process of env 1 died in the step of member 0 (the env itself), or that step"
    assert message in failure(how, vec_env, n_samples=1)


def test_a_process_that_ends_between_two_rollouts_is_named() -> None:
    env = processes([lambda: make_branchable(Failing("raise", at=10**9))] * 2)
    model = HybridGRPO("MlpPolicy", env, **{**SMALL, "n_steps": 8}, branch_horizon="auto").learn(16)
    env.processes[1].kill()
    env.processes[1].join()
    with pytest.raises(
        BranchingError, match=r"At step [89] of the training, the process of env 1 died while it (looked after|stepped)"
    ):
        model.learn(16, reset_num_timesteps=False)
    env.processes[0].terminate()


def test_an_error_of_the_envs_own_about_a_connection_is_left_alone() -> None:
    class Remote(NoisyWalk):
        def step(self, action: Any) -> Any:
            raise ConnectionResetError("by the service")

    with pytest.raises(ConnectionResetError, match="by the service"):
        HybridGRPO("MlpPolicy", Remote(), n_samples=1, **SMALL).learn(16)


def test_nan_of_the_executed_member_is_found() -> None:
    env = VecCheckNan(DummyVecEnv([lambda: Failing("nan")]), raise_exception=True)
    with pytest.raises(ValueError, match="found nan in rewards"):
        HybridGRPO("MlpPolicy", env, n_samples=1, **SMALL).learn(64)


TRAINING = """
import sys
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from sb3_hybrid_grpo import HybridGRPO
from tests.toy_envs import walk

env = VecNormalize(make_vec_env(walk, n_envs=2))
model = HybridGRPO("MlpPolicy", env, n_steps=64, batch_size=16, n_epochs=2, branch_horizon=8)
model.learn(10**9, callback=CheckpointCallback(32, sys.argv[1], save_vecnormalize=True))
"""


def checkpoints(folder: Path) -> list[int]:
    """How many steps those had after which both files were written, in order; the last ones first."""
    return sorted((int(path.stem.split("_")[-2]) for path in folder.glob("*vecnormalize*.pkl")), reverse=True)


def test_a_training_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path)], cwd=root)
    try:
        while len(checkpoints(tmp_path)) < 4:
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()  # SIGKILL
        assert process.wait() == -signal.SIGKILL
    _, last, *_ = checkpoints(tmp_path)  # that of the moment may be half of a file: SB3 writes its statistics in place
    env = VecNormalize.load(str(tmp_path / f"rl_model_vecnormalize_{last}_steps.pkl"), make_vec_env(walk, n_envs=2))
    assert isinstance(env.obs_rms, RunningMeanStd)
    # an observation of each env at the reset, and one a step: those of the executed members alone, which are called first
    assert env.obs_rms.count == pytest.approx(2 * ((last // 2 - 1) // 4 + 1) + 2, abs=0.01)
    model = HybridGRPO.load(tmp_path / f"rl_model_{last}_steps", env=env)
    assert model.num_timesteps == last
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps % 128 == last % 128 and model.num_timesteps > last
    assert env.obs_rms.count > last // 4 + 16  # goes on from where it was


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    model = HybridGRPO("MlpPolicy", walk(), **SMALL)
    model.save(tmp_path / "model")
    before = model.policy.state_dict()["value_net.weight"].clone()
    model.learn(32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as on a disk with so much left, a write beyond it fails
    try:
        with pytest.raises((OSError, RuntimeError)):
            model.save(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert HybridGRPO.load(tmp_path / "model").policy.state_dict()["value_net.weight"].equal(before)
    model.save(tmp_path / "model")
    assert not HybridGRPO.load(tmp_path / "model").policy.state_dict()["value_net.weight"].equal(before)
