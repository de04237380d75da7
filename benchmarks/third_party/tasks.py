"""Tasks that others wrote, as gymnasium envs: actions in [-1, 1], observations of float32, noise that follows the seed."""

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import FlattenObservation, TransformObservation

from sb3_hybrid_grpo.branching import declare_constant


class Task(gym.Env[Any, Any]):
    """
    A task behind gymnasium's API.

    Some libraries draw from numpy's process-wide generator, or start each episode with a random seed. Here each episode has a
    seed that ``np_random`` draws, and each env a stream of its own in the place of numpy's: otherwise an evaluation in the
    same process would restart the noise of the training.

    :param make: Makes the library's env.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._stream = np.random.MT19937(0)
        self._env = self._drawing(make)
        actions = self.library_actions()
        self._low, self._high, self._type = actions.low.astype(float), actions.high.astype(float), actions.dtype
        self.action_space = Box(-1, 1, actions.shape, np.float32)
        self.observation_space = Box(-np.inf, np.inf, self.observed(self._drawing(self.restarted, 0)).shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; a seed holds for the episodes after it, too."""
        super().reset(seed=seed)
        seed_of_episode = int(self.np_random.integers(2**31))
        self._stream = np.random.MT19937(seed_of_episode)
        return self.observed(self._drawing(self.restarted, seed_of_episode)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Execute an action, scaled to the library's range."""
        scaled = self._low + (np.clip(action, -1, 1) + 1) / 2 * (self._high - self._low)
        obs, reward, done, *_ = self._drawing(self._env.step, self.acted(scaled.astype(self._type)))
        return self.observed(obs), float(np.sum(reward)), bool(done), False, {}

    def library_actions(self) -> Box:
        """The library's action space."""
        return self._env.action_space

    def restarted(self, seed: int) -> Any:
        """Reset the library's env with a seed; its observation."""
        return self._env.reset(seed=seed)[0]

    def acted(self, action: Any) -> Any:
        """Turn an action into the library's form."""
        return action

    def observed(self, obs: Any) -> Any:
        """Turn the library's observation into one array."""
        return np.asarray(obs, np.float32)

    def _drawing(self, call: Callable[..., Any], *args: Any) -> Any:
        others = np.random.get_bit_generator()
        np.random.set_bit_generator(self._stream)
        try:
            return call(*args)
        finally:
            np.random.set_bit_generator(others)


class OrGym(Task):
    """
    A task of or-gym, which knows gym 0.19 and numpy 1 only.

    :param module: Its module within or_gym.envs.
    :param name: Its class.
    """

    def __init__(self, module: str, name: str) -> None:
        for part in ("", ".core", ".error", ".logger", ".spaces", ".utils", ".utils.seeding", ".envs", ".envs.registration"):
            sys.modules.setdefault("gym" + part, importlib.import_module("gymnasium" + part))
        vars(np).setdefault("Inf", np.inf)
        super().__init__(getattr(importlib.import_module(f"or_gym.envs.{module}"), name))

    def restarted(self, seed: int) -> Any:
        self._env.np_random = np.random.default_rng(seed)  # PortfolioOpt draws from it
        return self._env.reset()

    def acted(self, action: Any) -> Any:
        return action.item() if action.size == 1 else action  # Newsvendor needs a number


class Motor(Task):
    """Current control of a permanent magnet synchronous motor, of gym-electric-motor: currents follow random references."""

    def __init__(self) -> None:
        motors: Any = importlib.import_module("gym_electric_motor")
        super().__init__(lambda: motors.make("Cont-CC-PMSM-v0", visualization=motors.ElectricMotorVisualization()))

    def observed(self, obs: Any) -> Any:
        return np.concatenate(obs).astype(np.float32)


class Reactor(Task):
    """A stirred tank reactor of pc-gym, with the set points of its documentation and noise in what is measured."""

    def __init__(self) -> None:
        steps = 100
        parameters = {
            "model": "cstr",
            "N": steps,
            "tsim": 25,
            "SP": {"Ca": [0.85] * (steps // 2) + [0.9] * (steps // 2)},
            "x0": np.array([0.8, 330, 0.8]),
            "a_space": {"low": np.array([295]), "high": np.array([302])},
            "o_space": {"low": np.array([0.7, 300, 0.8]), "high": np.array([1, 350, 0.9])},
            "r_scale": {"Ca": 1e3},
            "normalise_a": False,
            "normalise_o": True,
            "noise": True,
            "noise_percentage": 0.001,
            "integration_method": "casadi",
        }
        # CasADi's objects, which cannot be copied
        symbols = ("sym_x", "sym_u", "casadi_sym_model", "casadi_model_func")
        declare_constant("pcgym.integrator.integration_engine", *symbols)
        super().__init__(lambda: importlib.import_module("pcgym").make_env(parameters))


class Buildings(Task):
    """
    CityLearn's challenge of 2022, with one agent for all buildings: it charges their batteries. Episodes are weeks of the
    recorded year. No step draws random numbers: reset chooses the week. Since 2.2 the library loads its records from the net.
    """

    def __init__(self) -> None:
        sys.modules.setdefault("gym", gym)
        city: Any = importlib.import_module("citylearn.citylearn")
        weeks = {"episode_time_steps": 168, "rolling_episode_split": True}
        super().__init__(lambda: city.CityLearnEnv("citylearn_challenge_2022_phase_1", central_agent=True, **weeks))

    def library_actions(self) -> Box:
        return self._env.action_space[0]

    def restarted(self, seed: int) -> Any:
        self._env.random_episode_split, self._env.random_seed = True, seed
        self._env.episode_tracker.reset_episode_index()  # the library multiplies the seed by the index
        return self._env.reset()

    def acted(self, action: Any) -> Any:
        return [action]

    def observed(self, obs: Any) -> Any:
        return np.asarray(obs[0], np.float32)


def dynamic_obstacles() -> gym.Env[Any, Any]:
    """MiniGrid's Dynamic-Obstacles with 6 times 6 cells; the observation is its view of 7 times 7, flat."""
    from minigrid.wrappers import ImgObsWrapper

    env = FlattenObservation(ImgObsWrapper(gym.make("MiniGrid-Dynamic-Obstacles-6x6-v0")))
    return TransformObservation(env, lambda obs: obs.astype(np.float32), Box(0, 255, env.observation_space.shape, np.float32))


def register() -> None:
    """Register the tasks whose library is installed, as third_party/...-v0."""
    inventory = "supply_chain.inventory_management"
    tasks: tuple[tuple[str, str, str, int | None, dict[str, str]], ...] = (
        ("InvManagementBacklog", "or_gym", "OrGym", None, {"module": inventory, "name": "InvManagementBacklogEnv"}),
        ("InvManagementLostSales", "or_gym", "OrGym", None, {"module": inventory, "name": "InvManagementLostSalesEnv"}),
        ("Newsvendor", "or_gym", "OrGym", None, {"module": "classic_or.newsvendor", "name": "NewsvendorEnv"}),
        ("PortfolioOpt", "or_gym", "OrGym", None, {"module": "finance.portfolio_opt", "name": "PortfolioOptEnv"}),
        ("MotorCurrent", "gym_electric_motor", "Motor", 1000, {}),
        ("Reactor", "pcgym", "Reactor", None, {}),
        ("Buildings", "citylearn", "Buildings", None, {}),
        ("DynamicObstacles", "minigrid", "dynamic_obstacles", None, {}),
    )
    for task, library, entry, max_episode_steps, arguments in tasks:
        if find_spec(library):
            gym.register(f"third_party/{task}-v0", f"tasks:{entry}", max_episode_steps=max_episode_steps, kwargs=arguments)


register()
