"""Envs in workers on a Ray cluster."""

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_hybrid_grpo.commands.cli import install_command
from sb3_hybrid_grpo.distributed.env_worker import EnvWorker
from sb3_hybrid_grpo.distributed.worker_handles import WorkerHandle
from sb3_hybrid_grpo.errors import BranchingError, FleetError
from sb3_hybrid_grpo.notices import notice

try:
    ray: Any = importlib.import_module("ray")
except ImportError as error:
    raise ImportError(f"RayVecEnv needs ray; install with: {install_command('ray')}") from error

_CLOSE_WITHIN = 10.0
"""Seconds within which envs must close."""
_STARTS = 5
"""The most starts of a worker that is lost while it starts."""
_NOTICE_AFTER, _PLACED_WITHIN = 60.0, 300.0
"""If workers have not started: seconds before a notice, and before an error if the cluster has no room for them."""


class _Connection:
    """This process's connection with Ray. The last RayVecEnv ends it when it closes, unless the user had opened it."""

    def __init__(self) -> None:
        self.users, self.is_own, self.is_local = 0, False, False

    def open(self, address: str | None) -> None:
        if not ray.is_initialized():
            address = address or os.environ.get("RAY_ADDRESS")
            self.is_own, self.is_local = True, not address
            if address:
                ray.init(address=address)
            else:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                ray.init(address="local", include_dashboard=False)
        self.users += 1

    def close(self) -> None:
        self.users -= 1
        if self.users == 0 and self.is_own:
            ray.shutdown()
            self.is_own = self.is_local = False


_connection = _Connection()


class RayVecEnv(SubprocVecEnv):
    """
    A SubprocVecEnv whose envs run in workers on a Ray cluster, perhaps on other machines. HybridGRPO makes the envs branchable
    by itself. A step of all envs, or of all their groups, is one remote call to each worker.

    **A lost worker** (its process died, its node is gone, a step took longer than ``step_timeout``) is started again, where
    the cluster has room. Its envs begin new episodes. In the lost step, the old episodes end as truncated, with the reward 0
    and the last observation as ``terminal_observation``; ``info["worker_restarted"]`` is True. The same holds for the siblings
    of a group. A new env's seed is made from the old seed and the number of restarts. Attributes that ``set_attr`` had set are
    set again. If an env raises an exception, a FleetError is raised.

    Example::

        make_vec_env("CartPole-v1", n_envs=64, vec_env_cls=RayVecEnv, vec_env_kwargs={"address": "auto"})

    :param env_fns: Functions that make the envs. They are pickled; the workers must be able to import their modules
    :param envs_per_worker: Envs in each worker, stepped one after another
    :param address: Address of a cluster, "auto" on its machines. None: the environment variable ``RAY_ADDRESS``, or if that
        is not set, a new Ray on this machine. No effect if ``ray.init`` was called before
    :param worker_options: Options of the actors (``ray.remote``'s): ``num_cpus`` (1; 0 with a new Ray on this machine),
        ``num_gpus``, ``resources``, ``runtime_env``, ...
    :param max_restarts: How often each worker may be started again
    :param step_timeout: Seconds that a step of an env may take, resets included; None: no limit
    :raises ValueError: if a value is not allowed
    :raises FleetError: if an env raises, a worker is lost after ``max_restarts`` restarts, or the cluster has no room
    """

    worker_restarts = 0
    """Number of restarts of all workers together."""

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env[Any, Any]]],
        envs_per_worker: int = 1,
        address: str | None = None,
        worker_options: dict[str, Any] | None = None,
        max_restarts: int = 3,
        step_timeout: float | None = None,
    ) -> None:
        options = dict(worker_options or {})
        _check(len(env_fns), envs_per_worker, options, max_restarts, step_timeout)
        self.max_restarts, self.step_timeout = max_restarts, step_timeout
        self.waiting = self.closed = False
        _connection.open(address)
        # like SubprocVecEnv's processes, workers on one machine reserve no cores
        self._actor_options = {"num_cpus": 0 if _connection.is_local else 1, "scheduling_strategy": "SPREAD", **options}
        asks = {"CPU": self._actor_options["num_cpus"], "GPU": options.get("num_gpus", 0), **options.get("resources", {})}
        self._asks_for = {name: amount for name, amount in asks.items() if amount}
        self._workers: list[WorkerHandle] = []
        try:
            actor_class = ray.remote(EnvWorker).options(**self._actor_options)
            for number, first in enumerate(range(0, len(env_fns), envs_per_worker)):
                its = env_fns[first : first + envs_per_worker]
                timeout = np.inf if step_timeout is None else step_timeout
                self._workers.append(WorkerHandle(number, first, its, actor_class.remote, self._exchange, timeout))
            self._spaces: list[gym.Space[Any]] = []
            self._start(self._workers)
            self.remotes: Any = tuple(env for worker in self._workers for env in worker.envs)
            self.processes: Any = self.remotes
            VecEnv.__init__(self, len(env_fns), *self._spaces)
        except BaseException:
            self.close()
            raise

    def make_branchable(self) -> None:
        """Make the envs branchable, in their workers."""
        for remote in self.remotes:
            remote.send(("make_branchable", None))
        for remote in self.remotes:
            remote.recv()

    def close(self) -> None:
        """Close the envs, and end the workers."""
        if self.closed:
            return
        self.closed = True
        started = [worker for worker in self._workers if worker.actor is not None and ray.is_initialized()]
        for worker in started:
            worker.forget()
        closing = [worker.actor.close.remote() for worker in started]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_WITHIN)
        for worker in started:
            ray.kill(worker.actor)
        _connection.close()

    def _exchange(self, timeout: float) -> None:
        """Send the waiting commands, one call to each worker, and take the answers. Restart lost workers."""
        end = time.monotonic() + timeout
        try:
            while busy := [worker for worker in self._workers if worker.send()]:
                wait_until = min(end, *(worker.deadline for worker in busy))
                causes = self._receive(busy, max(0.0, wait_until - time.monotonic()))
                if causes:
                    self._restart(causes)
                    for worker in causes:
                        worker.send_again()
                elif time.monotonic() >= end:
                    return
        except BaseException:  # drop pending answers, lest the next command take them for its own
            for worker in self._workers:
                worker.forget()
            self.waiting = False
            raise

    def _receive(self, busy: list[WorkerHandle], timeout: float) -> dict[WorkerHandle, str]:
        """Take answers. Return the lost workers with the cause of each."""
        answers = [worker.answer for worker in busy]
        try:
            for worker, answer in zip(busy, ray.get(answers, timeout=timeout), strict=True):
                worker.receive(answer)
            return {}
        except ray.exceptions.RayError:  # some answers are missing: take them one by one
            pass
        there, _ = ray.wait(answers, num_returns=len(answers), timeout=0)
        causes = {}
        for worker in [worker for worker in busy if worker.answer is not None]:
            if worker.answer in there:
                try:
                    worker.receive(ray.get(worker.answer))
                except ray.exceptions.RayError as error:
                    causes[worker] = _cause_of(error)
            elif time.monotonic() >= worker.deadline:
                causes[worker] = f"a step took longer than step_timeout={self.step_timeout:g} s"
        return causes

    def _restart(self, causes: dict[WorkerHandle, str]) -> None:
        """Restart lost workers, all at once."""
        lost = {worker: f"{worker.name} on {worker.node}: {cause}" for worker, cause in causes.items()}
        for worker, cause in causes.items():
            ray.kill(worker.actor)
            if worker.restarts >= self.max_restarts:
                raise FleetError(
                    f"{worker.name} on {worker.node} is lost: {cause}. It was started again {worker.restarts} times before "
                    f"(max_restarts={self.max_restarts}). The model can be saved; make new envs to go on."
                )
        for worker in causes:
            worker.restarts += 1
            self.worker_restarts += 1
        self._start(list(causes))
        found = "\n".join(f"{text}. It was started again on {worker.node}." for worker, text in lost.items())
        notice(f"Workers were lost. The episodes of their envs end as truncated, and new ones begin.\n{found}")

    def _start(self, workers: list[WorkerHandle]) -> None:
        """Start workers. Ray may place a worker on a node that has just died; such a worker is lost, and starts again."""
        causes = dict.fromkeys(workers, "")
        try:
            for _ in range(_STARTS):
                starting = {worker.start(): worker for worker in causes}
                self._wait_for_places(list(starting))
                causes = {}
                for answer, worker in starting.items():
                    try:
                        self._spaces = worker.started(ray.get(answer))
                    except ray.exceptions.RayError as error:
                        causes[worker] = _cause_of(error)
                if not causes:
                    return
            worker, cause = next(iter(causes.items()))
            raise FleetError(f"{worker.name} was lost each of {_STARTS} times that it was started: {cause}.")
        except BaseException:  # also after an interrupt, half-started workers must be started again
            for worker in workers:
                if worker.actor is not None:
                    ray.kill(worker.actor)
            raise

    def _wait_for_places(self, starting: list[Any]) -> None:
        """Wait until workers have started, or are lost; raise an error if the cluster has no room for them."""
        _, late = ray.wait(starting, num_returns=len(starting), timeout=_NOTICE_AFTER)
        if late:
            notice(self._why_late(len(late), _NOTICE_AFTER))
            _, late = ray.wait(late, num_returns=len(late), timeout=_PLACED_WITHIN - _NOTICE_AFTER)
        while late:
            free = ray.available_resources()
            if any(free.get(name, 0.0) < amount for name, amount in self._asks_for.items()):
                raise FleetError(self._why_late(len(late), _PLACED_WITHIN))
            _, late = ray.wait(late, num_returns=len(late), timeout=_NOTICE_AFTER)  # an env may take long to make

    def _why_late(self, number: int, seconds: float) -> str:
        there = {name: amount for name, amount in ray.cluster_resources().items() if name in self._asks_for}
        return (
            f"{number} of the workers did not start within {seconds:g} s. Each asks for {self._asks_for}; the cluster has "
            f"{there}, for all its users. If this is too little, add machines, or ask for less: "
            "worker_options={'num_cpus': 0.5}."
        )


def _cause_of(error: Exception) -> str:
    """The cause of a worker's loss. If the worker is alive and raised an exception, that exception is raised."""
    if isinstance(error, ray.exceptions.RayTaskError):
        if isinstance(error.cause, BranchingError | FleetError):
            raise error.cause from error
        raise error
    return " ".join(str(error).split()).rstrip(".")


def _check(n_envs: int, envs_per_worker: int, options: dict[str, Any], max_restarts: int, step_timeout: float | None) -> None:
    """Refuse values that are not allowed."""
    if n_envs == 0:
        raise ValueError("Received no env_fns: RayVecEnv needs one function for each env.")
    if not isinstance(envs_per_worker, int) or envs_per_worker < 1:
        raise ValueError(f"Received envs_per_worker={envs_per_worker!r}: it must be a whole number of at least 1.")
    if not isinstance(max_restarts, int) or max_restarts < 0:
        raise ValueError(f"Received max_restarts={max_restarts!r}: it must be a whole number, 0 or more.")
    if step_timeout is not None and not step_timeout > 0:
        raise ValueError(f"Received step_timeout={step_timeout!r}: it must be a number of seconds above 0, or None.")
    if "max_restarts" in options:
        raise ValueError("Received max_restarts in worker_options. Use RayVecEnv(max_restarts=...), which restarts workers.")
