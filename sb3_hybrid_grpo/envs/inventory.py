"""A shop that orders goods for a random demand, which decides most of the cost."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.envs.parameters import (
    check_count,
    check_not_negative,
    check_persistence,
    check_positive,
    is_finite,
    require,
)
from sb3_hybrid_grpo.envs.pictures import PicturedEnv

STOCK_UNIT = 20.0
"""Units of goods that are 1 in the observation of the stock."""
ORDER_UNIT = 10.0
"""Units of goods that are 1 in the observation of an order."""


class Inventory(PicturedEnv[np.ndarray]):
    """
    A shop orders goods that arrive ``lead_time`` steps later, and sells them to a random demand. Goods that are out of stock
    are backlogged: delivered later, at a cost for every step of waiting. One step, with the standard normal noise z::

        log_demand ← demand_persistence · log_demand + demand_noise · z
        stock      ← stock + (the order placed lead_time steps ago) − base_demand · exp(log_demand)
        reward     = −(holding_cost · max(stock, 0) + backlog_cost · max(−stock, 0) + order_cost · order)

    and then the stock is clipped to ±``max_stock``. An episode never terminates; its registration truncates it after 100
    steps. It starts with ``initial_stock``, orders of ``base_order`` on their way, and ``log_demand`` = 0.

    Observation, ``(2 + lead_time,)``: stock / 20; the orders on their way / 10, the next one to arrive first; log_demand.
    Action a, ``(1,)``: order = clip(base_order + base_order · a, 0, max_order), so that a = −1 orders nothing and a = 0
    orders ``base_order``; the largest action orders ``max_order``. ``info["demand"]`` is the demand of the step.

    :param lead_time: Steps from an order to its arrival, at least 1
    :param base_demand: Median demand, in units of goods a step
    :param demand_persistence: How much of the logarithm of demand carries over to the next step, from 0 to below 1
    :param demand_noise: Standard deviation of the noise added to the logarithm of demand at each step
    :param holding_cost: Cost of a unit of goods in stock, each step
    :param backlog_cost: Cost of a unit of goods owed to customers, each step
    :param order_cost: Cost of ordering a unit of goods
    :param base_order: Units of goods that the action 0 orders
    :param max_order: Units of goods that can be ordered in a step
    :param max_stock: Limit of the stock and of the backlog, in units of goods
    :param initial_stock: Units of goods in stock at the start; negative: a backlog
    :param render_mode: None, or "rgb_array": pictures of the observation
    :raises ValueError: if a value is not allowed
    """

    def __init__(
        self,
        lead_time: int = 2,
        base_demand: float = 5.0,
        demand_persistence: float = 0.8,
        demand_noise: float = 0.5,
        holding_cost: float = 0.1,
        backlog_cost: float = 0.9,
        order_cost: float = 0.1,
        base_order: float = 5.0,
        max_order: float = 20.0,
        max_stock: float = 60.0,
        initial_stock: float = 10.0,
        render_mode: str | None = None,
    ) -> None:
        check_count(lead_time=lead_time)
        check_positive(base_demand=base_demand, base_order=base_order, max_order=max_order, max_stock=max_stock)
        check_persistence(demand_persistence=demand_persistence)
        check_not_negative(
            demand_noise=demand_noise, holding_cost=holding_cost, backlog_cost=backlog_cost, order_cost=order_cost
        )
        require(base_order <= max_order, "base_order", base_order, f"at most max_order={max_order}")
        within = is_finite(initial_stock) and -max_stock <= initial_stock <= max_stock
        require(within, "initial_stock", initial_stock, f"a finite number between -max_stock and max_stock={max_stock}")
        self.lead_time = lead_time
        self.base_demand = base_demand
        self.demand_persistence = demand_persistence
        self.demand_noise = demand_noise
        self.holding_cost = holding_cost
        self.backlog_cost = backlog_cost
        self.order_cost = order_cost
        self.base_order = base_order
        self.max_order = max_order
        self.max_stock = max_stock
        self.initial_stock = initial_stock

        high = np.array([max_stock / STOCK_UNIT] + [max_order / ORDER_UNIT] * lead_time + [np.inf], dtype=np.float32)
        low = np.array([-max_stock / STOCK_UNIT] + [0.0] * lead_time + [-np.inf], dtype=np.float32)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, max_order / base_order - 1.0, (1,), dtype=np.float32)
        self._stock, self._orders, self._log_demand = self._start()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._stock, self._orders, self._log_demand = self._start()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        noise = self.np_random.standard_normal()
        self._log_demand = self.demand_persistence * self._log_demand + self.demand_noise * float(noise)
        demand = self.base_demand * math.exp(self._log_demand)
        order = min(max(self.base_order + self.base_order * float(action[0]), 0.0), self.max_order)

        stock = self._stock + self._orders[0] - demand
        self._orders = (*self._orders[1:], order)
        cost = self.holding_cost * max(stock, 0.0) + self.backlog_cost * max(-stock, 0.0) + self.order_cost * order
        self._stock = min(max(stock, -self.max_stock), self.max_stock)
        return self._observe(), -cost, False, False, {"demand": demand}

    def _start(self) -> tuple[float, tuple[float, ...], float]:
        return float(self.initial_stock), (float(self.base_order),) * self.lead_time, 0.0

    def _observe(self) -> np.ndarray:
        orders = [order / ORDER_UNIT for order in self._orders]
        return np.array([self._stock / STOCK_UNIT, *orders, self._log_demand], dtype=np.float32)
