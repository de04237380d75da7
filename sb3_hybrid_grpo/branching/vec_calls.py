"""Step the siblings of every env of a VecEnv, in the VecEnv's processes if it has any."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs, obs_space_info

from sb3_hybrid_grpo.branching.forked_env import without_interrupts
from sb3_hybrid_grpo.branching.vec_wrappers import Observations
from sb3_hybrid_grpo.branching.wrapper import BranchingWrapper, SiblingFailure, SiblingSteps, layers_above, make_branchable
from sb3_hybrid_grpo.errors import BranchingError

Then = Callable[[], object] | None
"""A function that :func:`call` calls after it has sent all commands and before it reads the answers. It sends member 0's step,
so that the processes take that step right after the siblings' steps."""
_PATIENCE = 30.0
"""Seconds to wait for an answer that is only read to be dropped."""


def when(step: int) -> str:
    """The beginning of a message."""
    return f"At step {step} of the training," if step else "Before the first step of the training,"


def call(env: SubprocVecEnv, method: str, arguments: Sequence[Any], then: Then = None) -> list[Any]:
    """Call a method of all envs at once. Each env has its own arguments, which ``env_method`` does not offer."""
    answers: list[Any] = []
    try:
        for remote, its in zip(env.remotes, arguments, strict=True):
            remote.send(("env_method", (method, its, {})))
        if then is not None:
            then()
        for remote, process in zip(env.remotes, env.processes, strict=True):
            _await(remote, process)
            with without_interrupts():
                answers.append(remote.recv())
    except BaseException:
        forget_step(env)
        raise
    return answers


def send_step(env: VecEnv, actions: np.ndarray) -> None:
    """Send a step to the envs of a SubprocVecEnv. :func:`step_env` waits for it, and steps the envs of other VecEnvs."""
    base = env.unwrapped
    if isinstance(base, SubprocVecEnv) and type(env).step is VecEnv.step:
        try:
            env.step_async(actions)
        except BaseException:
            base.waiting = True  # some processes may have received the step
            raise


def step_env(env: VecEnv, actions: np.ndarray, step: int) -> VecEnvStepReturn:
    """Step a VecEnv itself."""
    base = env.unwrapped
    if not isinstance(base, SubprocVecEnv) or type(env).step is not VecEnv.step:
        return env.step(actions)
    try:
        if not base.waiting:
            send_step(env, actions)
        if not base.waiting:  # a wrapper may send nothing before its step_wait
            return env.step_wait()
        for remote, process in zip(base.remotes, base.processes, strict=True):
            _await(remote, process)
        with without_interrupts():  # all answers have arrived
            return env.step_wait()
    except (EOFError, ConnectionError) as error:
        raise BranchingError(
            f"{when(step)} the process of env {_dead_one(base)} died in the step of member 0 (the env itself), or that "
            "step failed: see the last output of the process. Make the envs anew and load the last checkpoint."
        ) from error


def forget_step(env: VecEnv) -> bool:
    """
    After an error or an interrupt, read all pending answers, lest the next command take them for its own. Their number is
    unknown: an interrupt may come between a command and the note that it was sent. So ask for a space and read until it comes.

    :return: Whether the envs are in processes, so that their states are unknown
    """
    base = env.unwrapped
    if not isinstance(base, SubprocVecEnv):
        return False
    for remote, process in zip(base.remotes, base.processes, strict=True):
        end, answer = time.monotonic() + _PATIENCE, None
        with contextlib.suppress(EOFError, OSError):  # the interrupt has ended the process, too
            remote.send(("get_attr", "observation_space"))
            while not isinstance(answer, gym.Space) and process.is_alive() and time.monotonic() < end:
                with without_interrupts():
                    answer = remote.recv() if remote.poll(0.2) else None
    base.waiting = False
    return True


def uninterrupted(env: Any) -> contextlib.AbstractContextManager[None]:
    """Let Ctrl-C wait while SB3 itself reads messages of a SubprocVecEnv's processes, as in a reset."""
    return without_interrupts() if isinstance(env.unwrapped, SubprocVecEnv) else contextlib.nullcontext()


def _await(remote: Any, process: Any) -> None:
    """Wait for an answer. Forked processes hold each other's pipes open, so a dead process may cause no end of file."""
    while not remote.poll(1.0):
        if not process.is_alive() and not remote.poll():
            raise EOFError


def _dead_one(env: SubprocVecEnv) -> Any:
    """The index of a process that has ended; "?" if all seem to live."""
    ended = wait([process.sentinel for process in env.processes], timeout=3.0)
    return next((index for index, process in enumerate(env.processes) if process.sentinel in ended), "?")


def objects_shared_by(held_objects: Sequence[list[Any]]) -> list[dict[str, Any] | None]:
    """For each env of this process, the objects that another env holds, too, by their ids; None if there is no other env."""
    if len(held_objects) == 1:
        return [None]
    held = [{str(id(one)): one for one in its} for its in held_objects]
    holders = Counter(key for its in held for key in its)
    return [{key: one for key, one in its.items() if holders[key] > 1} for its in held]


class Fanout:
    """Calls a method of all envs' :class:`BranchingWrapper` at once, each with its own arguments."""

    def __init__(self, env: VecEnv) -> None:
        if env.render_mode == "human" and "human" in env.get_attr("metadata", 0)[0].get("render_modes", []):
            raise ValueError(
                "Received an env with render_mode='human', which would draw every step of every sibling. "
                "Make the training env without a render_mode, and watch the policy in an env of its own."
            )
        self.base: VecEnv = env.unwrapped
        if isinstance(self.base, DummyVecEnv) and _steps_as(self.base, DummyVecEnv):
            self.base.envs = [make_branchable(one) for one in self.base.envs]
            of_siblings = ("step_siblings", "mask_siblings", "check_siblings", "drop_siblings")
            names = (*of_siblings, "saw_noise", "fork_reasons", "held_objects")
            self._methods = {name: self.base.get_attr(name) for name in names}
        elif isinstance(self.base, SubprocVecEnv) and _steps_as(self.base, SubprocVecEnv):
            if hasattr(self.base, "make_branchable"):  # a RayVecEnv
                self.base.make_branchable()
            if not all(self.base.env_is_wrapped(BranchingWrapper)):
                raise ValueError(
                    "Received a SubprocVecEnv whose envs cannot be branched from outside their processes. "
                    "Make them branchable where they are made:\n"
                    "    make_vec_env(env_id, n_envs=4, vec_env_cls=SubprocVecEnv, wrapper_class=make_branchable)\n"
                    "or SubprocVecEnv([lambda: make_branchable(gym.make(env_id))] * 4), "
                    "with `from sb3_hybrid_grpo import make_branchable`."
                )
        else:
            raise ValueError(
                f"Received a {type(self.base).__name__}, in which no siblings can be stepped. "
                "Use a DummyVecEnv or a SubprocVecEnv, or n_samples=1 (plain PPO)."
            )
        for above in self._wrappers_above():
            if above:
                raise ValueError(
                    f"Received an env that was made branchable below {', '.join(above)}, which its siblings would bypass. "
                    "Call make_branchable last: make_branchable(Wrapper(env)), not Wrapper(make_branchable(env))."
                )
        self.at_step = 0
        """Number of the present step, for messages."""
        self._keys, self._shapes, dtypes = obs_space_info(self.base.observation_space)
        # a SubprocVecEnv keeps the envs' dtypes, a DummyVecEnv has arrays of its own
        casts = not isinstance(self.base, SubprocVecEnv)
        self.dtype_of_rewards = np.float32 if casts else None
        self._dtypes: dict[Any, Any] = dtypes if casts else dict.fromkeys(self._keys)

    def _wrappers_above(self) -> list[list[str]]:
        """For each env, the wrappers that its siblings would bypass."""
        if isinstance(self.base, DummyVecEnv):
            return [layers_above(one) for one in self.base.envs]
        return self.base.env_method("wrappers_above")

    def check(self) -> None:
        """Check that siblings are exact."""
        in_processes = isinstance(self.base, SubprocVecEnv)
        shared = [None] * self.base.num_envs if in_processes else objects_shared_by(self.call("held_objects"))
        self.call("check_siblings", [(one,) for one in shared])

    def step(self, actions: np.ndarray, forks: np.ndarray, then: Then = None) -> list[SiblingSteps]:
        """Step all siblings."""
        # lists are cheaper than arrays to read and to send
        forks_of = forks.T.tolist()
        arguments = [(actions[:, e], forks_of[e]) for e in range(self.base.num_envs)]
        return self.call("step_siblings", arguments, then)

    def stacked(self, observations: list[Any]) -> Observations:
        """Make a batch of observations, with the dtypes that a VecEnv gives them."""
        batch = {}
        for key in self._keys:
            values = [one if key is None else one[key] for one in observations]
            try:
                rows: np.ndarray | None = np.array(values, dtype=self._dtypes[key])
            except ValueError:  # of several shapes
                rows = None
            if rows is None or rows.shape[1:] != self._shapes[key]:
                what = "observations" if key is None else f"observations {key!r}"
                shapes = " and ".join(map(str, sorted({np.shape(value) for value in values})))
                raise BranchingError(
                    f"Siblings' {what} have the shape {shapes}, where the env's observation_space has {self._shapes[key]}. "
                    "Try it with stable_baselines3.common.env_checker.check_env."
                )
            batch[key] = rows
        return dict_to_obs(self.base.observation_space, batch)

    def call(self, method: str, arguments: Sequence[Any] | None = None, then: Then = None) -> list[Any]:
        """Call a method of all envs; see :class:`Fanout`."""
        arguments = [()] * self.base.num_envs if arguments is None else arguments
        if isinstance(self.base, SubprocVecEnv):
            try:
                answers = call(self.base, method, arguments, then)
            except (EOFError, ConnectionError) as error:
                busy = "stepped" if method == "step_siblings" else "looked after"
                raise BranchingError(
                    f"{when(self.at_step)} the process of env {_dead_one(self.base)} died while it {busy} the env's siblings, "
                    "members 1 and on (killed, or out of memory?). Make the envs anew and load the last checkpoint."
                ) from error
        else:
            answers = [one(*its) for one, its in zip(self._methods[method], arguments, strict=True)]
        for index, answer in enumerate(answers):
            if isinstance(answer, SiblingFailure):
                who = f"member {answer.member} (a sibling) of env {index}" if answer.member else f"env {index}"
                if isinstance(answer.error, BranchingError):
                    raise BranchingError(f"{answer.error} ({when(self.at_step)} {who})")
                what = method.removesuffix("_siblings")
                raise BranchingError(
                    f"{when(self.at_step)} the {what} of {who} failed: {answer.error!r}. Its traceback:\n{answer.traceback}"
                ) from answer.error
        return answers


def _steps_as(env: VecEnv, kind: type[VecEnv]) -> bool:
    """Whether a VecEnv, perhaps of a subclass, has the step methods of a class."""
    return type(env).step_wait is kind.step_wait and type(env).step_async is kind.step_async
