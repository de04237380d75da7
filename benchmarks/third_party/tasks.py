"""Tasks that others wrote, as gymnasium envs: actions in [-1, 1], Box observations of float32, seeds that reach the noise."""

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box


class OrGymEnv(gym.Env[Any, Any]):
    """
    A task of or-gym, which knows gym 0.19's API only and draws from numpy's process-wide generator.

    Each env gets a stream of its own: otherwise an evaluation in the same process would restart the noise of the training.

    :param module: The module within or_gym.envs.
    :param name: The class.
    """

    def __init__(self, module: str, name: str) -> None:
        for part in ("", ".core", ".error", ".logger", ".spaces", ".utils", ".utils.seeding", ".envs", ".envs.registration"):
            sys.modules.setdefault("gym" + part, importlib.import_module("gymnasium" + part))
        vars(np).setdefault("Inf", np.inf)  # removed in numpy 2
        self._random = np.random.RandomState(0)
        self._env = self._drawing(getattr(importlib.import_module(f"or_gym.envs.{module}"), name))
        orders = self._env.action_space
        self._low, self._range, self._type = orders.low.astype(float), orders.high.astype(float) - orders.low, orders.dtype
        self.action_space = Box(-1, 1, orders.shape, np.float32)
        self.observation_space = Box(-np.inf, np.inf, self._env.observation_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._random = np.random.RandomState(seed)
            self._env.np_random = np.random.default_rng(seed)  # PortfolioOpt's
        return np.asarray(self._drawing(self._env.reset), np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        wanted = (self._low + (np.clip(action, -1, 1) + 1) / 2 * self._range).astype(self._type)
        # Newsvendor needs a number
        obs, reward, done, _ = self._drawing(self._env.step, wanted.item() if wanted.size == 1 else wanted)
        return np.asarray(obs, np.float32), float(reward), done, False, {}

    def _drawing(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call with this env's own stream in the place of numpy's."""
        others = np.random.get_state()
        np.random.set_state(self._random.get_state())
        try:
            return call(*args)
        finally:
            self._random.set_state(np.random.get_state())
            np.random.set_state(others)


def register() -> None:
    """Register the tasks whose library is installed, as third_party/...-v0."""
    if find_spec("or_gym"):
        inventory, newsvendor = "supply_chain.inventory_management", "classic_or.newsvendor"
        for task, module, name in (
            ("InvManagementBacklog", inventory, "InvManagementBacklogEnv"),
            ("InvManagementLostSales", inventory, "InvManagementLostSalesEnv"),
            ("Newsvendor", newsvendor, "NewsvendorEnv"),
            ("PortfolioOpt", "finance.portfolio_opt", "PortfolioOptEnv"),
        ):
            gym.register(f"third_party/{task}-v0", "tasks:OrGymEnv", kwargs={"module": module, "name": name})


register()
