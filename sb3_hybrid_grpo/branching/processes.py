"""What the processes of a SubprocVecEnv are told, and what they answer, each in its turn."""

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_hybrid_grpo.errors import BranchingError


Then = Callable[[], object] | None
"""What is to be done when commands are sent, before their answers are read."""
_PATIENCE = 30.0
"""How long an answer that nobody wants any more is waited for, in seconds."""


class DeadProcessError(EOFError):
    """
    A process of a SubprocVecEnv has ended.

    :param index: Which one
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def when(step: int) -> str:
    """
    :param step: Number of a step; 0 before the first
    :return: The beginning of a message
    """
    return f"At step {step} of the training," if step else "Before the first step of the training,"


def base_of(env: VecEnv) -> VecEnv:
    """
    :param env: A VecEnv
    :return: The one that its wrappers are around
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def call(env: SubprocVecEnv, method: str, arguments: Sequence[Any], then: Then = None) -> list[Any]:
    """
    Call a method of every env at once, each with arguments of its own; ``env_method`` has the same for all.

    :param env: The envs
    :param method: The name of the method
    :param arguments: Its arguments in each env
    :param then: Sends what the processes are to do next, so that none of them waits for the others' answers to be read
    :return: What each of them returned
    :raises DeadProcessError: if a process has ended
    """
    answers: list[Any] = []
    sent = 0
    try:
        for remote, its in zip(env.remotes, arguments, strict=True):
            remote.send(("env_method", (method, its, {})))
            sent += 1
        if then is not None:
            then()
        for remote, process in zip(env.remotes, env.processes, strict=True):
            _await(remote, process)
            answers.append(remote.recv())
    except (EOFError, ConnectionError) as error:
        raise DeadProcessError(_dead_one(env, len(answers) if sent == len(env.remotes) else sent)) from error
    except BaseException:
        _drain(env, slice(len(answers), sent), _PATIENCE)
        raise
    return answers


def send_step(env: VecEnv, actions: np.ndarray) -> None:
    """
    Send the envs of a SubprocVecEnv a step that :func:`step_env` waits for; those of another VecEnv step there.

    :param env: The VecEnv
    :param actions: An action for each of its envs
    """
    base = base_of(env)
    if isinstance(base, SubprocVecEnv) and type(env).step is VecEnv.step:
        try:
            env.step_async(actions)
        except BaseException:
            base.waiting = True  # some of the processes may have been told
            raise


def step_env(env: VecEnv, actions: np.ndarray, step: int) -> VecEnvStepReturn:
    """
    Step a VecEnv itself.

    :param env: The VecEnv
    :param actions: An action for each of its envs
    :param step: Number of the step, for a message
    :return: What it returned
    :raises BranchingError: if a process of it ended, which SB3 reports without a word, or waits for
    """
    base = base_of(env)
    if not isinstance(base, SubprocVecEnv) or type(env).step is not VecEnv.step:
        return env.step(actions)
    try:
        if not base.waiting:
            send_step(env, actions)
        for remote, process in zip(base.remotes, base.processes, strict=True) if base.waiting else ():
            _await(remote, process)  # a wrapper may send nothing before its step_wait
        try:
            return env.step_wait()
        except BaseException:  # the answers that are not read yet are there
            _drain(base, slice(None), patience=0.0)
            base.waiting = False
            raise
    except (EOFError, ConnectionError) as error:
        raise BranchingError(
            f"{when(step)} the process of env {_dead_one(base, '?')} died in the step of member 0 (the env itself), or that "
            "step failed: what it printed last says which. Make the envs anew and load the last checkpoint."
        ) from error


def forget_step(env: VecEnv) -> bool:
    """
    Read what came of a step that was sent and is not waited for any more, lest the next command take it for its answer.

    :param env: The VecEnv
    :return: Whether there may have been one: then nobody knows where the envs are
    """
    base = base_of(env)
    if not isinstance(base, SubprocVecEnv):
        return False
    if base.waiting:
        _drain(base, slice(None), _PATIENCE)
        base.waiting = False
    return True


def _await(remote: Any, process: Any) -> None:
    """Wait for an answer. Forked processes hold each other's pipes open, so that a dead one need not give an end of file."""
    while not remote.poll(1.0):
        if not process.is_alive() and not remote.poll():
            raise EOFError


def _drain(env: SubprocVecEnv, which: slice, patience: float) -> None:
    """Read the answers still under way, so that no later command takes one of them for its own."""
    for remote, process in zip(env.remotes[which], env.processes[which], strict=True):
        end = time.monotonic() + patience
        try:
            while not (there := remote.poll(min(0.2, patience))) and process.is_alive() and time.monotonic() < end:
                continue
            if there:
                remote.recv()
        except (EOFError, OSError):  # the interrupt has ended the process too
            continue


def _dead_one(env: SubprocVecEnv, guess: Any) -> Any:
    """Which process has ended."""
    ended = wait([process.sentinel for process in env.processes], timeout=3.0)
    return next((index for index, process in enumerate(env.processes) if process.sentinel in ended), guess)
