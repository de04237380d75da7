"""Queue: first come, first served, against a history of every job."""

from typing import Any

import numpy as np
import pytest

from sb3_hybrid_grpo.envs import Queue
from sb3_hybrid_grpo.envs.queue import SERVICE_RATES


class Script:
    """
    A generator of random numbers that says what it was told.

    :param sizes: Sizes of jobs, in units of the smallest
    :param times: Times between arrivals
    """

    def __init__(self, sizes: list[float], times: list[float]) -> None:
        self.sizes, self.times = iter(sizes), iter(times)

    def pareto(self, shape: float) -> float:
        return next(self.sizes) - 1.0

    def exponential(self, mean: float) -> float:
        return next(self.times)


def test_by_hand() -> None:
    env = Queue(service_rates=(1.0, 2.0), mean_interarrival_time=5.0, job_size_shape=1.5, job_size_scale=10.0)
    script: Any = Script(sizes=[1.0, 3.0, 2.0, 1.0], times=[4.0, 10.0, 30.0])
    env.np_random = script
    # a job of 10 waits to be sent; the mean size is 10 * 1.5 / 0.5 = 30
    np.testing.assert_allclose(env.reset()[0], np.log1p([0, 0, 10 / 30]), rtol=1e-6)
    # to the slow server, done in 10; after 4, 6 of it are left; 4 of time, over 5 * 2 servers
    observation, reward, terminated, truncated, info = env.step(0)
    np.testing.assert_allclose(observation, np.log1p([6 / 30, 0, 30 / 30]), rtol=1e-6)
    assert reward == pytest.approx(-0.4)
    assert (terminated, truncated, info) == (False, False, {"interarrival_time": 4.0})
    # 30 more behind it: done in 6 and in 36; after 10: 10 of the second job are over, so 26 are left; 6 + 10 of time
    observation, reward, *_ = env.step(0)
    np.testing.assert_allclose(observation, np.log1p([26 / 30, 0, 20 / 30]), rtol=1e-6)
    assert reward == pytest.approx(-1.6)
    # 20 to the fast server: done in 10; the other in 26; both before the next arrival
    observation, reward, *_ = env.step(1)
    np.testing.assert_allclose(observation, np.log1p([0, 0, 10 / 30]), rtol=1e-6)
    assert reward == pytest.approx(-3.6)


def test_equals_the_history_of_every_job() -> None:
    env = Queue()
    observation, _ = env.reset(seed=1)
    n_steps, mean_size, rates = 200, 300.0, np.array(SERVICE_RATES)
    servers = np.random.default_rng(0).integers(10, size=n_steps)
    now, free_from = 0.0, np.zeros(10)
    history = []  # arrival, start, finish, server of each job
    for server in servers:
        size = float(np.expm1(observation[-1])) * mean_size
        start = max(now, free_from[server])
        free_from[server] = start + size / rates[server]
        history.append((now, start, free_from[server], server))

        observation, reward, _, _, info = env.step(server)
        later = now + info["interarrival_time"]
        in_system = sum(max(0.0, min(finish, later) - max(arrival, now)) for arrival, _, finish, _ in history)
        assert reward == pytest.approx(-in_system / (55.0 * 10), rel=1e-4)
        now = later
        work = np.zeros(10)
        for _, start, finish, at in history:
            work[at] += max(0.0, finish - max(start, now)) * rates[at]
        np.testing.assert_allclose(np.expm1(observation[:-1]) * mean_size, work, rtol=1e-3, atol=1e-2)


def test_arrivals_and_sizes_have_their_distributions() -> None:
    env = Queue(job_size_shape=3.0)
    env.reset(seed=2)
    sizes, times = [], []
    for _ in range(20_000):
        observation, _, _, _, info = env.step(9)
        sizes.append(np.expm1(observation[-1]) * 150.0)
        times.append(info["interarrival_time"])
    assert np.mean(times) == pytest.approx(55.0, rel=0.03)
    assert np.std(times) == pytest.approx(55.0, rel=0.03)
    assert np.min(sizes) == pytest.approx(100.0, rel=1e-3)
    assert np.mean(sizes) == pytest.approx(150.0, rel=0.03)
    assert np.mean(np.array(sizes) > 200.0) == pytest.approx(0.5**3, rel=0.05)


def test_sending_jobs_where_they_finish_first_beats_sending_them_anywhere() -> None:
    def play(seed: int, sensible: bool) -> float:
        env, total = Queue(), 0.0
        observation, _ = env.reset(seed=seed)
        chooser = np.random.default_rng(seed)
        for _ in range(200):
            work = np.expm1(observation)
            first = int(np.argmin((work[:-1] + work[-1]) / np.array(SERVICE_RATES)))
            observation, reward, *_ = env.step(first if sensible else int(chooser.integers(10)))
            total += reward
        return total

    assert np.mean([play(seed, True) for seed in range(5)]) > 0.6 * np.mean([play(seed, False) for seed in range(5)])


@pytest.mark.parametrize("action", [-1, 10])
def test_unknown_server(action: int) -> None:
    env = Queue()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"Received the action -?\d+: it must be a server, a whole number from 0 to 9"):
        env.step(action)
