"""
Siblings in processes of their own, forked from the env's: for what no snapshot in place can save.

A fork has all that the process has, whatever it is made of. It costs milliseconds and memory, and what lies outside of the
process (files, sockets, other processes) is shared with it.
"""

import contextlib
import functools
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.plays import RandomActions, chosen
from sb3_hybrid_grpo.errors import BranchingError

ANSWER_WITHIN = 60.0
"""Seconds that a fork has for a step."""


class HungForkError(BranchingError):
    """A fork gave no answer in time."""


class DeadForkError(BranchingError):
    """A fork has died."""


def can_fork() -> bool:
    """
    :return: Whether processes can be forked here
    """
    return hasattr(os, "fork")


class Fork:
    """
    A process forked from this one, in which a function is called again and again. It ends when this object is thrown away, and
    soon after this process ends.

    :param function: What is called, in the fork; what it returns comes back
    :param seconds: How long it may take for an answer
    """

    def __init__(self, function: Callable[..., Any], seconds: float = ANSWER_WITHIN) -> None:
        self.seconds, self.owner, self.waits = seconds, os.getpid(), False
        self.pid = 0  # until there is one
        self.pipe, far_end = multiprocessing.Pipe()
        numbers = random.getstate()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which a fork does not have: see the time-out
            pid = os.fork()
        if pid == 0:
            random.setstate(numbers)  # Python gives every fork a seed of its own
            _serve(function, far_end, self.owner)
        self.pid = pid
        far_end.close()

    def call(self, *arguments: Any) -> Any:
        """
        Call the function.

        :param arguments: Its arguments
        :return: What it returned
        :raises BranchingError: if there is no answer
        :raises RuntimeError: if it raised
        """
        if self.waits:  # an interrupt broke off the last call; its answer comes first
            self._receive()
        self.waits = True
        with contextlib.suppress(ConnectionError):  # a dead process is reported below
            self.pipe.send(arguments)
        succeeded, answer = self._receive()
        self.waits = False
        if not succeeded:
            error, its_traceback = answer
            raise RuntimeError(f"in a forked process: {error}") from RuntimeError(its_traceback)
        return answer

    def _receive(self) -> Any:
        kind: type[BranchingError]
        try:
            if self.pipe.poll(self.seconds):
                return self.pipe.recv()
            status = f"has not answered for {self.seconds:g} s (it may wait for a thread, which a fork does not have)"
            kind = HungForkError
        except (EOFError, ConnectionError):
            status, kind = "died", DeadForkError
            with contextlib.suppress(ChildProcessError):
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                self.pid = 0
                status += f" with signal {-code}" if code < 0 else f" with exit code {code}"
        self.close()
        raise kind(
            f"A process that was forked for a sibling of the env {status}. Give the env the two methods of "
            "sb3_hybrid_grpo.branching.SupportsBranching, so that it needs no fork, or use n_samples=1 (plain PPO)."
        )

    def close(self) -> None:
        """End the process, and wait for its end."""
        if self.pid and os.getpid() == self.owner:  # a fork of this process has the object too
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        self.pid = 0
        self.pipe.close()

    def __del__(self) -> None:
        if hasattr(self, "pipe"):
            self.close()


def _serve(function: Callable[..., Any], pipe: Connection, parent: int) -> None:
    """What the fork does until it is killed, or has lost its parent. It never returns."""
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C is for the parent; its handlers are none of the fork's
            signal.signal(kind, signal.SIG_IGN if kind == signal.SIGINT else signal.SIG_DFL)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)  # the other threads have not come along, and would be waited for
        while os.getppid() == parent:
            if not pipe.poll(1.0):
                continue
            try:
                answer = True, function(*pipe.recv())
            except BaseException as error:  # an interrupt too: this process has nobody else to tell
                answer = False, (repr(error), traceback.format_exc())
            pipe.send(answer)
    finally:
        os._exit(0)


class ForkedEnv:
    """
    An env in a fork of this process, as it is now. It stands where :class:`~sb3_hybrid_grpo.branching.copies.EnvCopy` does.

    :param env: The env
    :param previous: An earlier one that is not needed any more
    """

    def __init__(self, env: gym.Env[Any, Any], previous: "ForkedEnv | None" = None) -> None:
        if previous is not None:
            previous.fork.close()

        def call(method: str, *arguments: Any) -> Any:
            if method == "reset":
                return env.reset(seed=arguments[0], **arguments[1])[0]
            if method != "step":
                return env.get_wrapper_attr(method)(*arguments)
            observation, reward, terminated, truncated, _ = env.step(*arguments)
            return observation, reward, terminated, truncated

        self.fork: Fork = Fork(call)

    @property
    def env(self) -> "ForkedEnv":
        """The env, as far as siblings need one."""
        return self

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        :param action: The action
        :return: What the env returned, without its ``info``
        """
        return (*self.fork.call("step", action), {})

    def reset(self, seed: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """
        :param seed: The seed
        :param kwargs: Other arguments of the env's reset
        :return: What the env returned, without its ``info``
        """
        return self.fork.call("reset", seed, kwargs), {}

    def get_wrapper_attr(self, name: str) -> Callable[..., Any]:
        """
        :param name: The name of a method of the env or of one of its wrappers
        :return: A function that calls it
        """
        return functools.partial(self.fork.call, name)


class ForkEngine:
    """
    The engine of envs whose siblings are forks: the env itself is never touched, so that there is nothing to put back.

    :param env: The env
    """

    name = "forked"
    own_models = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env

    def shared_contents(self) -> dict[str, bytes]:
        """Nothing is shared."""
        return {}

    def code(self) -> list[Any]:
        """Nothing is saved."""
        return []

    def save(self, previous: None = None) -> None:
        """Nothing: see above."""

    def resave(self, start: None, previous: None = None) -> None:
        """Nothing: see above."""

    def restore(self, snapshot: None) -> None:
        """Nothing: see above."""

    def costs(self) -> tuple[float, float]:
        """
        Measure what siblings cost, with one that takes two steps.

        :return: Seconds to make a sibling and to take its first step, and seconds for a step more
        """
        (action,) = RandomActions(self.env).draw(1)
        start = time.perf_counter()
        sibling = ForkedEnv(self.env)
        _, _, terminated, truncated, _ = sibling.step(chosen(sibling, action))
        first = time.perf_counter() - start
        if terminated or truncated:
            sibling.reset()
        start = time.perf_counter()
        sibling.step(chosen(sibling, action))
        return first, time.perf_counter() - start
