"""A training that is interrupted at any moment goes on."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO, make_branchable
from sb3_hybrid_grpo.branching.forked_env import without_interrupts

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


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also in a background job, where the shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    """Interrupt the process; another thread receives the signal, as one of torch's may."""
    threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
    time.sleep(0.05)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_waits_while_envs_in_processes_are_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)
    reset, resets = envs.reset, []

    def interrupted_reset() -> Any:
        interrupt()
        resets.append(reset())
        return resets[-1]

    model = HybridGRPO("MlpPolicy", envs, device="cpu", **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(envs, "reset", interrupted_reset)
        with pytest.raises(KeyboardInterrupt):
            model.learn(96)
    assert len(resets) == 1
    assert model.learn(96).num_timesteps == 192
    envs.close()


@pytest.mark.usefixtures("interrupts")
def test_a_second_interrupt_does_not_wait() -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), without_interrupts():
        interrupt()
        reached.append(1)
        interrupt()
        reached.append(2)
    assert reached == [1]


@pytest.mark.usefixtures("interrupts")
def test_interrupts_at_the_ends_of_a_block_leave_the_handler_as_it_was() -> None:
    """Each instruction of the guard is interrupted once. A guard that stayed would swallow every later Ctrl-C."""
    moments = 0

    def interrupt_at(moment: int) -> Any:
        count = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            if frame.f_code is without_interrupts.__wrapped__.__code__:  # type: ignore[attr-defined]
                frame.f_trace_opcodes = True
                count += event == "opcode"
                if event == "opcode" and count == moment:
                    signal.raise_signal(signal.SIGINT)
            return trace

        return trace

    while True:
        moments += 1
        before = sys.gettrace()
        try:
            sys.settrace(interrupt_at(moments))
            with without_interrupts():
                pass
            break  # no such moment any more
        except KeyboardInterrupt:
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        finally:
            sys.settrace(before)
    assert moments > 20
