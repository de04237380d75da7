"""A process on the cluster that runs envs of a RayVecEnv."""

import socket
from collections.abc import Sequence
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
from stable_baselines3.common.env_util import is_wrapped

from sb3_hybrid_grpo.branching.vec_calls import objects_shared_by
from sb3_hybrid_grpo.branching.wrapper import SiblingFailure, make_branchable
from sb3_hybrid_grpo.errors import BranchingError, FleetError

Call = tuple[int, str, Any]
"""A command for an env: the env's place in the worker, the command's name and data; see the methods of :class:`EnvWorker`."""
LARGE = 100_000
"""Number of bytes from which Ray puts an answer into its object store."""


class EnvWorker:
    """
    Runs envs. Commands, data and answers are the same as between a SubprocVecEnv and its processes.

    ``start`` makes the envs, not ``__init__``: an exception in ``__init__`` would look like a death of the process.
    """

    first: int
    """Index of the first of these envs in the RayVecEnv."""
    envs: list[Any]
    reset_infos: list[dict[str, Any]]

    def start(self, packed: bytes) -> tuple[gym.Space[Any], gym.Space[Any], str, list[Any]]:
        """
        Make the envs.

        :param packed: Index of the first env, functions that make the envs, and commands to call afterwards
        :return: Observation space and action space, the name of the node, and the answers to the commands
        """
        import ray

        self.first, env_fns, calls = cloudpickle.loads(packed)
        self.envs, self.reset_infos = [], [{} for _ in env_fns]
        for env_fn in env_fns:
            try:
                self.envs.append(env_fn())
            except Exception as error:
                raise FleetError(f"Env {self.first + len(self.envs)} could not be made: {error!r}.") from error
        answers = self._answers(calls)
        for answer in answers:
            if isinstance(answer, SiblingFailure):
                raise answer.error
        node = f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:8]})"
        return self.envs[0].observation_space, self.envs[0].action_space, node, answers

    def run(self, packed: bytes) -> bytes | list[Any]:
        """
        Call envs one after another.

        :param packed: The calls, pickled, because Ray is slower with arrays than with bytes
        :return: The answers, pickled; large answers unpickled, because Ray passes their arrays without a copy
        """
        answers = self._answers(cloudpickle.loads(packed))
        packed = cloudpickle.dumps(answers)
        return packed if len(packed) < LARGE else answers

    def close(self) -> None:
        """Close the envs."""
        for env in self.envs:
            env.close()

    def _answers(self, calls: Sequence[Call]) -> list[Any]:
        answers = []
        for place, command, data in calls:
            try:
                answers.append(getattr(self, f"_{command}")(place, data))
            except BranchingError:
                raise
            except Exception as error:
                what = data[0] if command in ("env_method", "get_attr", "set_attr") else command
                raise FleetError(f"Env {self.first + place} raised {error!r} in {what!r}.") from error
        return answers

    def _step(self, place: int, action: Any) -> tuple[Any, Any, bool, dict[str, Any], dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.envs[place].step(action)
        info["TimeLimit.truncated"] = truncated and not terminated
        if terminated or truncated:
            info["terminal_observation"] = observation
            observation, self.reset_infos[place] = self.envs[place].reset()
        return observation, reward, terminated or truncated, info, self.reset_infos[place]

    def _reset(self, place: int, data: tuple[int | None, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
        seed, options = data
        observation, self.reset_infos[place] = self.envs[place].reset(seed=seed, **({"options": options} if options else {}))
        return observation, self.reset_infos[place]

    def _render(self, place: int, _: None) -> Any:
        return self.envs[place].render()

    def _env_method(self, place: int, data: tuple[str, Any, dict[str, Any]]) -> Any:
        name, arguments, keywords = data
        if name == "check_siblings":  # only this process has the objects that its envs share
            arguments = (objects_shared_by([one.get_wrapper_attr("held_objects")() for one in self.envs])[place],)
        return self.envs[place].get_wrapper_attr(name)(*arguments, **keywords)

    def _get_attr(self, place: int, name: str) -> Any:
        return self.envs[place].get_wrapper_attr(name)

    def _has_attr(self, place: int, name: str) -> bool:
        try:
            self.envs[place].get_wrapper_attr(name)
        except AttributeError:
            return False
        return True

    def _set_attr(self, place: int, data: tuple[str, Any]) -> None:
        setattr(self.envs[place], *data)

    def _is_wrapped(self, place: int, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]]) -> bool:
        return is_wrapped(self.envs[place], wrapper_class)

    def _make_branchable(self, place: int, _: None) -> None:
        self.envs[place] = make_branchable(self.envs[place])

    def _masks_of_forks(self, place: int, number: int) -> list[Any]:
        """The masks of siblings that would fork now: the env's own."""
        return [self.envs[place].get_wrapper_attr("action_masks")()] * number
