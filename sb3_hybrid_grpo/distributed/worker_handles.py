"""The driver's side of the workers: commands, answers, and replacements of lost answers."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.wrapper import SiblingSteps

Command = tuple[str, Any]
"""A SubprocVecEnv's command for the process of an env: the name of the command, and its data."""
_LASTING = ("make_branchable", "set_attr", "reset", "check_siblings")
"""Commands that are repeated for a new env after the loss of a worker."""


def _name_of(command: Command) -> str:
    """The command's name; for methods that concern siblings, the method's name."""
    name, data = command
    is_ours = name == "env_method" and data[0] in ("step_siblings", "mask_siblings", "check_siblings")
    return str(data[0] if is_ours else name)


def _steps_of(command: Command) -> int:
    """Number of env steps that a command asks for."""
    name = _name_of(command)
    return len(command[1][1][1]) if name == "step_siblings" else name == "step"


class EnvHandle:
    """
    An env of a worker. It replaces two objects of a SubprocVecEnv: the pipe to an env's process, and the process.

    :param worker: The worker
    :param place: The env's place in the worker
    """

    def __init__(self, worker: "WorkerHandle", place: int) -> None:
        self.worker, self.place = worker, place
        self.answers: deque[Any] = deque()
        self.seed: int | None = None
        self.lasting: dict[str, Command] = {}
        self.last_obs: Any = None
        self.siblings_obs: list[Any] = []
        self.new_episode: tuple[Any, dict[str, Any]] | None = None
        """Observation and info of a new env's reset, until the step in which the lost episode ends."""

    def send(self, command: Command) -> None:
        """Keep the command until an answer is waited for, so that all commands for a worker go into one call."""
        self.worker.outbox.append((self, command))

    def poll(self, timeout: float = 0.0) -> bool:
        """Wait for an answer. Also True if no answer is pending."""
        if not self.answers and self.worker.is_busy():
            self.worker.exchange(timeout)
        return bool(self.answers) or not self.worker.is_busy()

    def recv(self) -> Any:
        """Return the next answer."""
        while not self.poll(60.0):
            continue
        if not self.answers:
            raise EOFError("No answer is pending.")
        return self.answers.popleft()

    def is_alive(self) -> bool:
        """Always True: a dead worker is restarted when its answer is waited for."""
        return True

    def take(self, command: Command, answer: Any) -> None:
        """Keep an answer until it is read, and the data needed if the worker is lost."""
        name, data = _name_of(command), command[1]
        if name in ("step", "reset"):
            self.last_obs = answer[0]
        if name == "reset" and data[0] is not None:
            self.seed = data[0]
        if isinstance(answer, SiblingSteps):
            self.siblings_obs = answer.observations
        if name in _LASTING:
            self.lasting[f"set_attr {data[0]}" if name == "set_attr" else name] = command
        self.answers.append(answer)

    def commands_after_loss(self, restarts: int) -> list[Command]:
        """The commands that set up a new env like the lost one. Its seed is made from the old seed and the restarts."""
        commands = dict(self.lasting)
        if "reset" in commands:
            seed = None if self.seed is None else int(np.random.SeedSequence([self.seed, restarts]).generate_state(1)[0])
            commands["reset"] = ("reset", (seed, {}))
        return list(commands.values())

    def answer_after_loss(self, command: Command) -> Any:
        """Truncate a lost episode, and those of its siblings, at their last observations. None: the new env must answer."""
        name, data = _name_of(command), command[1]
        if name == "reset":
            self.new_episode = None
        if self.new_episode is None:
            return None
        if name == "step":
            (observation, reset_info), self.new_episode = self.new_episode, None
            info = {"TimeLimit.truncated": True, "worker_restarted": True, "terminal_observation": self.last_obs}
            return observation, 0.0, True, info, reset_info
        if name == "step_siblings":
            observations = [self.last_obs if forks else self.siblings_obs[m] for m, forks in enumerate(data[1][1])]
            infos: list[dict[str, Any]] = [{"worker_restarted": True} for _ in observations]
            return SiblingSteps(observations, [0.0] * len(infos), [False] * len(infos), [True] * len(infos), infos)
        return None

    def to_ask(self, command: Command) -> Command:
        """The command for the worker. A new env has no siblings yet, so it is asked for its own masks instead of theirs."""
        if self.new_episode is not None and _name_of(command) == "mask_siblings":
            return "masks_of_forks", len(command[1][1][0])
        return command


class WorkerHandle:
    """
    A worker: an actor of the cluster, replaced by a new one when it is lost.

    :param number: The worker's number
    :param first: Index of its first env
    :param env_fns: Functions that make its envs
    :param new_actor: Makes an actor with an :class:`EnvWorker`
    :param exchange: Exchanges commands and answers with all workers, within a time limit in seconds
    :param step_timeout: Seconds that a step of an env may take
    """

    def __init__(
        self,
        number: int,
        first: int,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        new_actor: Callable[[], Any],
        exchange: Callable[[float], None],
        step_timeout: float,
    ) -> None:
        self.first, self.env_fns, self.new_actor = first, env_fns, new_actor
        self.exchange, self.step_timeout = exchange, step_timeout
        last = first + len(env_fns) - 1
        self.name = f"Worker {number} (env{'' if first == last else 's'} {first}{'' if first == last else f' to {last}'})"
        self.envs = [EnvHandle(self, place) for place in range(len(env_fns))]
        self.actor: Any = None
        self.node, self.restarts = "no node yet", 0
        self._commands_at_start: list[tuple[EnvHandle, Command]] = []
        self.forget()

    def forget(self) -> None:
        """Drop commands that are not sent and answers that are not read."""
        self.outbox: list[tuple[EnvHandle, Command]] = []
        self._sent: list[tuple[EnvHandle, Command, Any]] = []
        self.answer: Any = None
        """Ray's reference to the pending answer."""
        self.deadline = np.inf
        for env in self.envs:
            env.answers.clear()

    def is_busy(self) -> bool:
        """Whether answers are pending."""
        return bool(self.outbox) or self.answer is not None

    def start(self) -> Any:
        """Begin to start an actor. Return Ray's reference to the answer, for :meth:`started`."""
        its = [(env, command) for env in self.envs for command in env.commands_after_loss(self.restarts)]
        its.sort(key=lambda one: _name_of(one[1]) == "check_siblings")  # comes last, because it reads all envs of the worker
        self._commands_at_start = its
        self.actor = self.new_actor()
        calls = [(env.place, *command) for env, command in its]
        return self.actor.start.remote(cloudpickle.dumps((self.first, self.env_fns, calls)))

    def started(self, answer: Any) -> list[gym.Space[Any]]:
        """Take the answer of the started actor; return the envs' spaces."""
        observation_space, action_space, self.node, answers = answer
        for (env, command), its in zip(self._commands_at_start, answers, strict=True):
            if command[0] == "reset":
                env.new_episode = its
        return [observation_space, action_space]

    def send(self) -> bool:
        """Send the waiting commands in one call, unless a call is pending. Return whether an answer is pending."""
        if self.outbox and self.answer is None:
            self._sent, self.outbox = [(env, command, None) for env, command in self.outbox], []
            self.send_again()
        return self.answer is not None

    def send_again(self) -> None:
        """Send the commands that have no answer yet."""
        self._sent = [(env, command, env.answer_after_loss(command)) for env, command, _ in self._sent]
        asked = [(env, command) for env, command, answer in self._sent if answer is None]
        steps = sum(_steps_of(command) for _, command in asked)
        self.deadline = time.monotonic() + self.step_timeout * steps if steps else np.inf
        calls = [(env.place, *env.to_ask(command)) for env, command in asked]
        self.answer = self.actor.run.remote(cloudpickle.dumps(calls))

    def receive(self, answers: bytes | list[Any]) -> None:
        """Take the answers."""
        theirs = iter(cloudpickle.loads(answers) if isinstance(answers, bytes) else answers)
        for env, command, answer in self._sent:
            env.take(command, next(theirs) if answer is None else answer)
        self.answer, self._sent, self.deadline = None, [], np.inf
