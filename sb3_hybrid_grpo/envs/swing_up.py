"""A cart that must swing up its pole, in still air and in gusty wind."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_hybrid_grpo.envs.parameters import check_count, check_not_negative, check_persistence, check_positive
from sb3_hybrid_grpo.envs.pictures import PicturedEnv


class CartPoleSwingUp(PicturedEnv[np.ndarray]):
    """
    The cart-pole of gymnasium's ``CartPole-v1`` (no friction, explicit Euler), with a continuous force and a pole that hangs
    down at the start. A step holds the force for ``n_substeps`` steps of the simulation. Reward of a step, from 0 to 1::

        (1 + cos(angle)) / 2 · max(1 − (position / track_limit)², 0)

    The episode terminates when the cart leaves the track; its registration truncates it after 250 steps. It starts with the
    cart in the middle, at rest, and the pole at rest at an angle of π. Normal noise is added to these four numbers; there is
    no other noise.

    Observation, ``(5,)``: position of the cart (m), speed of the cart (m/s), cosine and sine of the pole's angle from upright,
    speed of the pole (rad/s). Action, ``(1,)``, from −1 to 1: the force on the cart as a share of ``max_force``.

    :param gravity: Acceleration of gravity, in m/s²
    :param cart_mass: Mass of the cart, in kg
    :param pole_mass: Mass of the pole, in kg
    :param pole_half_length: Half the length of the pole, in m
    :param max_force: Largest force on the cart, in N
    :param track_limit: Distance from the middle to the ends of the track, in m
    :param time_step: Time of a substep, in s
    :param n_substeps: Substeps in a step
    :param start_noise: Standard deviation of the noise in the four numbers of the start state (m, m/s, rad, rad/s)
    :param render_mode: None, or "rgb_array": pictures of the observation
    :raises ValueError: if a value is not allowed
    """

    def __init__(
        self,
        gravity: float = 9.8,
        cart_mass: float = 1.0,
        pole_mass: float = 0.1,
        pole_half_length: float = 0.5,
        max_force: float = 10.0,
        track_limit: float = 2.4,
        time_step: float = 0.02,
        n_substeps: int = 2,
        start_noise: float = 0.1,
        render_mode: str | None = None,
    ) -> None:
        check_positive(
            gravity=gravity,
            cart_mass=cart_mass,
            pole_mass=pole_mass,
            pole_half_length=pole_half_length,
            max_force=max_force,
            track_limit=track_limit,
            time_step=time_step,
        )
        check_count(n_substeps=n_substeps)
        check_not_negative(start_noise=start_noise)
        self.gravity = gravity
        self.cart_mass = cart_mass
        self.pole_mass = pole_mass
        self.pole_half_length = pole_half_length
        self.max_force = max_force
        self.track_limit = track_limit
        self.time_step = time_step
        self.n_substeps = n_substeps
        self.start_noise = start_noise
        high = np.array([np.inf, np.inf, 1.0, 1.0, np.inf], dtype=np.float32)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
        self._position, self._speed, self._angle, self._spin = 0.0, 0.0, math.pi, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        start = np.array([0.0, 0.0, math.pi, 0.0]) + self.start_noise * self.np_random.standard_normal(4)
        self._position, self._speed, self._angle, self._spin = start.tolist()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        force = self.max_force * min(max(float(action[0]), -1.0), 1.0)
        for _ in range(self.n_substeps):
            self._move(force)
        off_middle = self._position / self.track_limit
        reward = (1.0 + math.cos(self._angle)) / 2.0 * max(1.0 - off_middle**2, 0.0)
        terminated = abs(self._position) > self.track_limit
        return self._observe(), reward, terminated, False, {}

    def _move(self, force: float) -> None:
        """One substep of explicit Euler: positions change with the old speeds."""
        total_mass = self.cart_mass + self.pole_mass
        pole_moment = self.pole_mass * self.pole_half_length
        cos, sin = math.cos(self._angle), math.sin(self._angle)
        push = (force + pole_moment * self._spin**2 * sin) / total_mass
        inertia = self.pole_half_length * (4.0 / 3.0 - self.pole_mass * cos**2 / total_mass)
        spin_change = (self.gravity * sin - cos * push) / inertia
        speed_change = push - pole_moment * spin_change * cos / total_mass
        self._position += self.time_step * self._speed
        self._speed += self.time_step * speed_change
        self._angle += self.time_step * self._spin
        self._spin += self.time_step * spin_change

    def _observe(self) -> np.ndarray:
        cos, sin = math.cos(self._angle), math.sin(self._angle)
        return np.array([self._position, self._speed, cos, sin, self._spin], dtype=np.float32)


class GustyCartPoleSwingUp(CartPoleSwingUp):
    """
    :class:`CartPoleSwingUp` in gusty wind: an Ornstein–Uhlenbeck process, seen once a step, that pushes the pole and, less,
    the cart. After the substeps of each step, with the standard normal noise z::

        wind  ← wind_persistence · wind + wind_noise · z
        spin  ← spin + pole_push · wind
        speed ← speed + cart_push · wind

    The wind is 0 at the start of an episode. The policy does not observe it; ``info["wind"]`` has its value after each step.

    :param wind_persistence: How much of the wind carries over to the next step, from 0 to below 1
    :param wind_noise: Standard deviation of the noise added to the wind at each step (the wind has no unit)
    :param pole_push: Change of the pole's speed for a wind of 1, each step, in rad/s
    :param cart_push: Change of the cart's speed for a wind of 1, each step, in m/s
    :param kwargs: Arguments of :class:`CartPoleSwingUp`
    :raises ValueError: if a value is not allowed
    """

    def __init__(
        self,
        wind_persistence: float = 0.9,
        wind_noise: float = 0.6,
        pole_push: float = 0.5,
        cart_push: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_persistence(wind_persistence=wind_persistence)
        check_not_negative(wind_noise=wind_noise, pole_push=pole_push, cart_push=cart_push)
        self.wind_persistence = wind_persistence
        self.wind_noise = wind_noise
        self.pole_push = pole_push
        self.cart_push = cart_push
        self._wind = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._wind = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        # The wind changes only speeds, on which neither the reward nor the end of the episode depends.
        _, reward, terminated, truncated, _ = super().step(action)
        self._wind = self.wind_persistence * self._wind + self.wind_noise * float(self.np_random.standard_normal())
        self._spin += self.pole_push * self._wind
        self._speed += self.cart_push * self._wind
        return self._observe(), reward, terminated, truncated, {"wind": self._wind}
