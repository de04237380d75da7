"""Inventory against its equations."""

import numpy as np
import pytest

from sb3_hybrid_grpo.envs import Inventory


def test_by_hand() -> None:
    env = Inventory(demand_noise=0.0)  # demand is 5 then, in every step
    np.testing.assert_allclose(env.reset(seed=0)[0], [0.5, 0.5, 0.5, 0.0])
    # 10 in stock + 5 arrive - 5 sold = 10; 10 ordered; cost 0.1 * 10 + 0.1 * 10
    observation, reward, *_ = env.step(np.array([1.0]))
    np.testing.assert_allclose(observation, [0.5, 0.5, 1.0, 0.0])
    assert reward == pytest.approx(-2.0)
    # 10 + 5 - 5 = 10; nothing ordered; cost 0.1 * 10
    observation, reward, *_ = env.step(np.array([-1.0]))
    np.testing.assert_allclose(observation, [0.5, 1.0, 0.0, 0.0])
    assert reward == pytest.approx(-1.0)
    # the 10 ordered two steps ago arrive: 10 + 10 - 5 = 15; 20 ordered, the most; cost 0.1 * 15 + 0.1 * 20
    observation, reward, *_ = env.step(np.array([9.0]))
    np.testing.assert_allclose(observation, [0.75, 0.0, 2.0, 0.0])
    assert reward == pytest.approx(-3.5)


def test_backlog_is_charged_before_it_is_clipped() -> None:
    env = Inventory(demand_noise=0.0, base_demand=100.0)
    env.reset(seed=0)
    observation, reward, *_ = env.step(np.array([-1.0]))  # 10 + 5 - 100
    assert reward == pytest.approx(-0.9 * 85)
    assert observation[0] == -3.0


def test_equals_its_equations() -> None:
    env = Inventory()
    env.reset(seed=8)
    draws = env.np_random.standard_normal(60)
    env.reset(seed=8)
    actions = np.random.default_rng(0).normal(0.5, 1.5, size=60).astype(np.float32)
    orders = np.clip(5 + 5 * actions.astype(float), 0, 20)
    assert orders.min() == 0 and orders.max() == 20
    arrivals = np.concatenate([[5.0, 5.0], orders])
    log_demand, stock = 0.0, 10.0
    for t in range(60):
        log_demand = 0.8 * log_demand + 0.5 * draws[t]
        stock = stock + arrivals[t] - 5 * np.exp(log_demand)
        observation, reward, terminated, truncated, info = env.step(actions[t : t + 1])
        assert reward == pytest.approx(-(0.1 * max(stock, 0) + 0.9 * max(-stock, 0) + 0.1 * orders[t]))
        stock = np.clip(stock, -60, 60)
        np.testing.assert_allclose(
            observation, [stock / 20, arrivals[t + 1] / 10, arrivals[t + 2] / 10, log_demand], rtol=1e-5, atol=1e-6
        )
        assert info["demand"] == pytest.approx(5 * np.exp(log_demand))
        assert not terminated and not truncated


def test_lead_time() -> None:
    env = Inventory(lead_time=4, demand_noise=0.0)
    assert env.reset(seed=0)[0].shape == (6,)
    stocks = [env.step(np.array([a], dtype=np.float32))[0][0] * 20 for a in [3.0, 0.0, 0.0, 0.0, 0.0]]
    np.testing.assert_allclose(stocks, [10, 10, 10, 10, 25])
