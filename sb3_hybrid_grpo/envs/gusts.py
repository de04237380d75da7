"""Random wind for MuJoCo envs."""

import numbers
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils import RecordConstructorArgs

from sb3_hybrid_grpo.envs.parameters import check_not_negative, check_persistence, require


class GustWrapper(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """
    Random wind on one body of a MuJoCo env, such as the torso of HalfCheetah, Hopper or Walker2d. Before each step, with two
    standard normal numbers z drawn from the env's own ``np_random``::

        wind ← persistence · wind + noise · z
        force along x = force · wind[0],  force along z (up) = force · vertical · wind[1]

    With the default persistence and noise, each component of ``wind`` has a standard deviation of 1 in the long run, so that
    ``force`` is the typical strength of the wind. The wind is 0 at the start of an episode. The policy does not observe it;
    ``info["wind"]`` has its value. Observations, actions, rewards and ends of episodes do not change.

    :param env: A MuJoCo env of gymnasium, or another env with MuJoCo's ``model`` and ``data``
    :param force: Strength of the wind, in N
    :param body: Name or number of the body that the wind pushes; None: the first one that is not the world, usually the torso
    :param persistence: How much of the wind carries over to the next step, from 0 to below 1
    :param noise: Standard deviation of the noise added to the wind at each step
    :param vertical: Strength of the vertical wind, as a share of ``force``
    :raises ValueError: if a value is not allowed
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        force: float,
        body: int | str | None = None,
        persistence: float = 0.9,
        noise: float = 0.44,
        vertical: float = 0.3,
    ) -> None:
        RecordConstructorArgs.__init__(self, force=force, body=body, persistence=persistence, noise=noise, vertical=vertical)
        gym.Wrapper.__init__(self, env)
        check_persistence(persistence=persistence)
        check_not_negative(force=force, noise=noise, vertical=vertical)
        self._simulator: Any = env.unwrapped
        self.force = force
        self.body = _find_body(self._simulator, body)
        self.persistence = persistence
        self.noise = noise
        self.vertical = vertical
        self._wind = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._wind = np.zeros(2)
        self._blow()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        noise = self._simulator.np_random.standard_normal(2)
        self._wind = self.persistence * self._wind + self.noise * noise
        self._blow()
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "wind": self._wind.copy()}

    def _blow(self) -> None:
        forces = self._simulator.data.xfrc_applied[self.body]
        forces[0] = self.force * self._wind[0]
        forces[2] = self.force * self.vertical * self._wind[1]


def gusty_mujoco(env_id: str, force: float, **kwargs: Any) -> GustWrapper:
    """
    Make a MuJoCo env with wind on its torso, without the wrappers that ``gym.make`` adds.

    :param env_id: Id of the MuJoCo env
    :param force: Strength of the wind, in N
    :param kwargs: Arguments of the MuJoCo env
    :return: The env
    :raises DependencyNotInstalled: if MuJoCo is not installed
    """
    try:
        env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except (ImportError, DependencyNotInstalled) as error:
        raise DependencyNotInstalled(
            f"{env_id} needs MuJoCo, which could not be imported ({error}). "
            'Install it with this package\'s extra: pip install "sb3-hybrid-grpo[mujoco]".'
        ) from error
    return GustWrapper(env.unwrapped, force)


def _find_body(simulator: Any, body: int | str | None) -> int:
    """The number of a body of the simulator's model."""
    model: Any = getattr(simulator, "model", None)
    if not hasattr(model, "nbody") or not hasattr(getattr(simulator, "data", None), "xfrc_applied"):
        raise ValueError(
            f"Received {simulator}, which is no MuJoCo env: wind needs the env's MjModel and MjData, in its attributes "
            "`model` and `data`. Use one of gymnasium's MuJoCo envs, for example HalfCheetah-v5."
        )
    names = [model.body(number).name for number in range(model.nbody)]
    if isinstance(body, str):
        require(body in names[1:], "body", body, f"one of {names[1:]}")
        return names.index(body)
    number = 1 if body is None else body
    known = isinstance(number, numbers.Integral) and 0 < number < len(names)
    require(known, "body", body, f"a whole number from 1 to {len(names) - 1}, or one of {names[1:]}")
    return number
