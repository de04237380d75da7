"""Load balancing: an agent sends random jobs of heavy-tailed size to servers of different speeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.envs.parameters import check_positive, is_finite, require
from sb3_hybrid_grpo.envs.pictures import PicturedEnv

SERVICE_RATES = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.05)
"""Speeds of the ten servers, in work a unit of time."""


class Queue(PicturedEnv[np.int64]):
    """
    Jobs arrive one by one; the agent sends each to a server, which works through its own jobs in the order of arrival. Times
    between arrivals are exponential (Poisson arrivals), sizes of jobs are Pareto: P(size > x) = (job_size_scale / x) to the
    power of job_size_shape. One step is one job: it joins its server, then time goes on to the next arrival. Reward::

        −(time that all jobs spent in the system, waiting or in service, since the last arrival)
            / (mean_interarrival_time · number of servers)

    which is, up to the noise of the arrivals, minus the mean number of jobs in the system per server. An episode starts with
    an empty system and the first job; it never terminates, and its registration truncates it after 200 jobs.

    Observation, ``(k + 1,)``: for each of the k servers log(1 + its unfinished work / mean size of a job), then
    log(1 + size / mean size) for the job to be sent. Action, ``Discrete(k)``: the server. ``info["interarrival_time"]`` is
    the time until the next arrival.

    The problem comes from H. Mao, S. B. Venkatakrishnan, M. Schwarzkopf, M. Alizadeh, *Variance Reduction for Reinforcement
    Learning in Input-Driven Environments*, ICLR 2019 (https://arxiv.org/abs/1807.02264), with the values of the authors'
    code. Four things differ: observations are logarithms instead of capped work; the reward is scaled; sizes and times are
    not rounded to whole numbers; an episode is truncated after a number of jobs, although some are unfinished.

    :param service_rates: Speed of each server, in work a unit of time
    :param mean_interarrival_time: Mean time between two arrivals, in units of time
    :param job_size_shape: Shape of the Pareto distribution of sizes, above 1 (finite mean); below 2 the variance is infinite
    :param job_size_scale: Smallest size of a job, in work
    :param render_mode: None, or "rgb_array": pictures of the observation
    :raises ValueError: if a value is not allowed
    """

    def __init__(
        self,
        service_rates: Sequence[float] = SERVICE_RATES,
        mean_interarrival_time: float = 55.0,
        job_size_shape: float = 1.5,
        job_size_scale: float = 100.0,
        render_mode: str | None = None,
    ) -> None:
        check_positive(
            mean_interarrival_time=mean_interarrival_time, job_size_shape=job_size_shape, job_size_scale=job_size_scale
        )
        require(job_size_shape > 1, "job_size_shape", job_size_shape, "above 1, or sizes have no mean")
        listed = np.ndim(service_rates) == 1 and all(is_finite(rate) and rate > 0 for rate in service_rates)
        needed = "a sequence of finite numbers above 0, one for each server"
        require(listed and len(service_rates) > 0, "service_rates", service_rates, needed)
        self.service_rates = rates = np.array(service_rates, dtype=float)
        self.mean_interarrival_time = mean_interarrival_time
        self.job_size_shape = job_size_shape
        self.job_size_scale = job_size_scale
        self.mean_job_size = job_size_scale * job_size_shape / (job_size_shape - 1)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, np.inf, (rates.size + 1,), dtype=np.float32)
        self.action_space: spaces.Space[np.int64] = spaces.Discrete(rates.size)
        self._work = np.zeros(rates.size)
        self._times_left = np.zeros(0)
        self._job_size = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._work = np.zeros(self.service_rates.size)
        self._times_left = np.zeros(0)
        self._job_size = self._draw_size()
        return self._observe(), {}

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        n_servers = self.service_rates.size
        if not 0 <= action < n_servers:
            raise ValueError(f"Received the action {action!r}: it must be a server, a whole number from 0 to {n_servers - 1}.")
        # First come, first served: the time at which a job will be finished is known when it joins.
        self._work[action] += self._job_size
        times_left = np.append(self._times_left, self._work[action] / self.service_rates[action])

        time = float(self.np_random.exponential(self.mean_interarrival_time))
        self._job_size = self._draw_size()
        time_in_system = float(np.minimum(times_left, time).sum())
        self._times_left = times_left[times_left > time] - time
        self._work = np.maximum(self._work - self.service_rates * time, 0.0)
        reward = -time_in_system / (self.mean_interarrival_time * n_servers)
        return self._observe(), reward, False, False, {"interarrival_time": time}

    def _draw_size(self) -> float:
        return self.job_size_scale * (1.0 + float(self.np_random.pareto(self.job_size_shape)))

    def _observe(self) -> np.ndarray:
        return np.log1p(np.append(self._work, self._job_size) / self.mean_job_size).astype(np.float32)
