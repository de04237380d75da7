"""
Siblings in processes forked from the env's process: for envs that no rule copies.

A fork has all objects of the process, whatever they are made of. It costs milliseconds and memory, and shares everything
outside of the process with it: files, sockets, other processes.
"""

import contextlib
import functools
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.engines import MemberState
from sb3_hybrid_grpo.branching.wrapper_chain import named, skip_in_chain, write_no_files
from sb3_hybrid_grpo.errors import BranchingError

ANSWER_WITHIN, CHECK_WITHIN = 60.0, 180.0
"""Seconds that a fork has for a step, and for a check."""
_READY_WITHIN = tuple(0.1 * 1.4**attempt for attempt in range(12))
"""Seconds in which the first fork, the second one, ... must say that it can draw random numbers."""


class HungForkError(BranchingError):
    """A fork gave no answer in time."""


class ForeignTraceback(Exception):
    """The traceback of an exception that was raised in another process."""


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """
    Let Ctrl-C wait until the end of a block that must not be broken off; a second one does not wait. To block the signal would
    not suffice: another thread may receive it, and Python raises KeyboardInterrupt in the main thread all the same.
    """
    before, frames = signal.getsignal(signal.SIGINT), []
    if not callable(before) or threading.current_thread() is not threading.main_thread():  # Python raises nothing here
        yield
        return

    def wait(number: int, frame: FrameType | None) -> None:
        frames.append(frame)
        if len(frames) > 1:
            before(number, frames.pop())

    try:
        signal.signal(signal.SIGINT, wait)
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if frames:
            before(signal.SIGINT, frames.pop())


def portable(error: BaseException) -> BaseException:
    """A copy of an exception that can be pickled."""
    copied: BaseException = RuntimeError(repr(error))
    with contextlib.suppress(Exception):
        copied = pickle.loads(pickle.dumps(error)) if isinstance(error, Exception) else copied
    return copied


class Fork:
    """
    A process forked from this one, which calls a function on request. It ends when this object is deleted, and soon after
    this process ends.
    """

    def __init__(
        self, function: Callable[..., Any], seconds: float = ANSWER_WITHIN, on_wait: Callable[[float], None] | None = None
    ) -> None:
        self.seconds, self.on_wait, self.owner = seconds, on_wait, os.getpid()
        self.waits = True  # a fork first says that it can draw random numbers
        self.pid = 0  # until there is one
        for ready_within in _READY_WITHIN:  # if another thread was drawing, the generator's lock stays locked in the fork
            self._fork(function)
            if self.pipe.poll(ready_within):
                break

    def _fork(self, function: Callable[..., Any]) -> None:
        if self.pid:
            self.close()
        self.pipe, far_end = multiprocessing.Pipe()
        numbers = random.getstate()
        with without_interrupts(), warnings.catch_warnings():  # Python drops an interrupt that comes while it forks
            warnings.simplefilter("ignore", DeprecationWarning)  # about threads, which a fork lacks: see the time-out
            self.pid = os.fork()
            if self.pid == 0:
                random.setstate(numbers)  # Python reseeds its generator in every fork
                _serve(function, far_end, self.owner)
        far_end.close()

    def call(self, *arguments: Any) -> Any:
        """Call the function."""
        if self.waits:  # for that first word, or for the answer to a call that an interrupt broke off
            self._receive()
        self.waits = True
        with contextlib.suppress(ConnectionError):  # _receive() reports a dead process
            self.pipe.send(arguments)
        succeeded, answer = self._receive()
        self.waits = False
        if succeeded:
            return answer
        error, text = answer
        raise error from ForeignTraceback(text)

    def _receive(self) -> Any:
        kind: type[BranchingError] = HungForkError
        start = time.monotonic()
        try:
            while (waited := time.monotonic() - start) < self.seconds:
                if self.pipe.poll(min(0.5, self.seconds - waited)):
                    return self.pipe.recv()
                if self.on_wait is not None:
                    self.on_wait(time.monotonic() - start)
            status = f"has not answered for {self.seconds:g} s (it may wait for a thread, which a fork does not have)"
        except (EOFError, ConnectionError):
            status, kind = "died", BranchingError
            with contextlib.suppress(ChildProcessError):
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                self.pid = 0
                status += f" with signal {-code}" if code < 0 else f" with exit code {code}"
        self.close()
        raise kind(
            f"A process that was forked for a sibling of the env {status}. Declare how the env is copied (register_copier, "
            "register_engine, or save_state() and restore_state(state)), or use n_samples=1 (plain PPO)."
        )

    def close(self) -> None:
        """End the process, and wait for its end."""
        if self.pid and os.getpid() == self.owner:  # a fork of this process has the object, too
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        self.pid = 0
        self.pipe.close()

    def __del__(self) -> None:
        if hasattr(self, "pipe"):
            self.close()


def _serve(function: Callable[..., Any], pipe: Connection, parent: int) -> None:
    """The fork's loop, until it is killed or its parent has ended. Never returns."""
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C is for the parent, whose handlers must not run here
            signal.signal(kind, signal.SIG_IGN if kind == signal.SIGINT else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 0)
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)  # torch would wait for threads that a fork does not have
            torch.get_rng_state()  # waits for the generator's lock, as numpy's draw does
        np.random.random_sample(0)
        pipe.send((True, None))
        while os.getppid() == parent:
            if not pipe.poll(1.0):
                continue
            try:
                pipe.send((True, function(*pipe.recv())))
            except BaseException as error:  # the parent must hear of a KeyboardInterrupt, too
                pipe.send((False, (portable(error), "".join(traceback.format_exception(error)))))
    finally:
        os._exit(0)


def in_fork(function: Callable[..., Any], env: Any, *arguments: Any) -> Any:
    """Call a function in a fork of the process, so that the env stays untouched, and show progress if it takes long."""

    def call(*arguments: Any) -> Any:
        write_no_files(env)
        return function(*arguments)

    fork = Fork(call, CHECK_WITHIN, functools.partial(_show_progress, env))
    try:
        return fork.call(*arguments)
    finally:
        fork.close()


def _show_progress(env: Any, seconds: float) -> None:
    if seconds > 2 and sys.stderr is not None:
        bar = f"{'#' * min(int(4 * seconds), 40):.<40}"
        sys.stderr.write(f"\rChecking siblings of {named(env)} [{bar}] {seconds:.0f} s ")
        sys.stderr.flush()


class ForkedEnv:
    """A copy of an env in its present state, in a fork of this process."""

    kind = "forked"

    def __init__(self, env: gym.Env[Any, Any], previous: Any = None, streams: MemberState | None = None) -> None:
        if isinstance(previous, ForkedEnv):
            previous.close()
        layers: list[Any] = []

        def call(method: str, arguments: Any, keywords: Any) -> Any:
            if not layers:  # the first call
                layers.append(skip_in_chain(env))
                if streams is not None:
                    streams.__enter__()  # never left: the process is the sibling's alone
            owner = layers[0]
            function = getattr(owner, method) if method in ("step", "reset", "render") else owner.get_wrapper_attr(method)
            return function(*arguments, **keywords) if callable(function) else function

        self.fork = Fork(call)
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def step(self, action: Any) -> Any:
        """Step the env in the fork."""
        return self.fork.call("step", (action,), {})

    def reset(self, **keywords: Any) -> Any:
        """Reset the env in the fork."""
        return self.fork.call("reset", (), keywords)

    def get_wrapper_attr(self, name: str) -> Callable[..., Any]:
        """A function that calls the env's method (or reads its attribute) in the fork."""
        return lambda *arguments, **keywords: self.fork.call(name, arguments, keywords)

    def close(self) -> None:
        """End the process."""
        self.fork.close()
