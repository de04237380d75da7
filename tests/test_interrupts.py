"""A training that is interrupted at any moment goes on."""

import os
import random
import signal
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO, make_branchable

SMALL: dict[str, Any] = {"n_samples": 3, "branch_horizon": 16, "n_steps": 96, "batch_size": 48, "n_epochs": 1, "seed": 0}


@pytest.mark.parametrize(
    ("env_id", "kind"),
    [
        ("CartPole-v1", DummyVecEnv),
        ("CartPole-v1", SubprocVecEnv),
        pytest.param("BipedalWalker-v3", DummyVecEnv, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_interrupts_at_random_moments(env_id: str, kind: type[DummyVecEnv] | type[SubprocVecEnv]) -> None:
    if env_id == "BipedalWalker-v3":
        pytest.importorskip("Box2D")
    envs = make_vec_env(env_id, 2, vec_env_cls=kind, wrapper_class=make_branchable)
    model = HybridGRPO("MlpPolicy", envs, device="cpu", **SMALL).learn(96)
    moments, interrupted = random.Random(0), 0
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    own = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        for _ in range(20):
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.1))
            try:
                for _ in range(50):
                    model.learn(96, reset_num_timesteps=False)
            except KeyboardInterrupt:  # Python drops one that comes while it finalizes an object
                interrupted += 1
            th.set_grad_enabled(True)  # an interrupt may leave torch without gradients
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, own)
    assert interrupted > 10
    steps = model.num_timesteps
    assert model.learn(96, reset_num_timesteps=False).num_timesteps > steps
    env: Any = model.get_env()
    env.close()


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows cannot hold signals back")
def test_an_interrupt_waits_while_envs_in_processes_are_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    held_back, reset = [], envs.reset

    def watched() -> Any:
        held_back.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return reset()

    monkeypatch.setattr(envs, "reset", watched)
    HybridGRPO("MlpPolicy", envs, device="cpu", **SMALL).learn(96)
    assert held_back == [True]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    envs.close()
