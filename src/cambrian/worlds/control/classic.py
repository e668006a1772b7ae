"""CartPole, Acrobot, MountainCar and Pendulum: the equations, constants, rewards and time limits of gymnasium's classic control.

Given the same state and the same actions in float64 they give the same trajectories (tests hold stored ones); only the random
starting states differ, because they come from torch generators.

Sources: Barto, Sutton, Anderson 1983 (CartPole, with the corrected equations of Florian 2007); Sutton 1996 (Acrobot);
Moore 1990 (MountainCar).
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from torch import Tensor

from cambrian.worlds.control.canvas import blank, disc, line
from cambrian.worlds.control.vec import Box, Discrete, VecWorld


class CartPole(VecWorld):
    """Keep a pole upright on a cart by pushing it left (0) or right (1); +1 a step.

    State and observation: position (m), velocity, angle (rad), angular velocity. Ends beyond 2.4 m or 12 degrees.
    """

    observation_space = Box((4,))
    action_space = Discrete(2)
    time_limit = 500
    gravity, cart_mass, pole_mass, half_length, force, dt = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
    max_position, max_angle = 2.4, 12 * 2 * math.pi / 360

    def initial(self, n: int) -> np.ndarray:
        """Four numbers within 0.05 of zero."""
        return self._uniform(n, 4, -0.05, 0.05)

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Explicit Euler, as gymnasium's default."""
        mass, moment = self.cart_mass + self.pole_mass, self.pole_mass * self.half_length
        _, velocity, angle, spin = state.T
        force = np.where(action == 1, self.force, -self.force).astype(state.dtype)
        cos, sin = np.cos(angle), np.sin(angle)
        push = (force + moment * (spin * spin) * sin) / mass
        inertia = self.half_length * (4.0 / 3.0 - self.pole_mass * (cos * cos) / mass)
        turn = (self.gravity * sin - cos * push) / inertia
        acceleration = push - moment * turn * cos / mass
        new = np.empty_like(state)
        for i, rate in enumerate((velocity, acceleration, spin, turn)):
            np.multiply(rate, self.dt, out=new[:, i])
        new += state
        terminated = (np.abs(new[:, 0]) > self.max_position) | (np.abs(new[:, 2]) > self.max_angle)
        return new, np.ones(len(new), np.float32), terminated

    def observe(self, state: np.ndarray) -> np.ndarray:
        """The state itself."""
        return state

    def picture(self, state: np.ndarray) -> Tensor:
        """Side view, 5 m wide."""
        x, angle = float(state[0]), float(state[2])
        view = blank(64, 96)
        left, ground = 48 + x * 18, 48.0
        line(view, (0, ground + 4), (95, ground + 4), (0.6, 0.6, 0.6), 0.6)
        line(view, (left - 7, ground), (left + 7, ground), (0.15, 0.15, 0.2), 3.0)
        line(
            view,
            (left, ground - 2),
            (left + 36 * math.sin(angle), ground - 2 - 36 * math.cos(angle)),
            (0.8, 0.5, 0.2),
            1.6,
        )
        return view


class MountainCar(VecWorld):
    """A weak car must swing to get up a hill: push left (0), nothing (1), right (2); -1 a step until position 0.5.

    State and observation: position in [-1.2, 0.6], velocity in [-0.07, 0.07].
    """

    observation_space = Box((2,), -1.2, 0.6)
    action_space = Discrete(3)
    time_limit = 200
    low, high, top_speed, goal, force, gravity = -1.2, 0.6, 0.07, 0.5, 0.001, 0.0025

    def initial(self, n: int) -> np.ndarray:
        """At rest in the valley, position in [-0.6, -0.4]."""
        return self._uniform(n, 2, -0.6, -0.4) * np.array([1, 0], self.dtype)

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Speed, then place; the left wall stops the car."""
        position, speed = state.T
        pull = np.cos(3 * position) * -self.gravity
        speed = speed + ((action - 1).astype(state.dtype) * self.force + pull)
        speed = np.clip(speed, -self.top_speed, self.top_speed)
        low, high = state.dtype.type(self.low), state.dtype.type(self.high)
        position = np.clip(position + speed, low, high)
        speed = np.where((position == low) & (speed < 0), 0, speed)
        terminated = (position >= self.goal) & (speed >= 0)
        return np.stack((position, speed), 1).astype(state.dtype), np.full(len(state), -1.0, np.float32), terminated

    def observe(self, state: np.ndarray) -> np.ndarray:
        """The state itself."""
        return state

    def picture(self, state: np.ndarray) -> Tensor:
        """The hill, the flag and the car."""
        view = blank(64, 96)

        def place(x: float) -> tuple[float, float]:
            return (x + 1.2) / 1.8 * 95, 58 - (math.sin(3 * x) * 0.45 + 0.55) * 48

        points = [place(-1.2 + 1.8 * i / 40) for i in range(41)]
        for a, b in itertools.pairwise(points):
            line(view, a, b, (0.4, 0.5, 0.4), 0.8)
        x, y = place(self.goal)
        line(view, (x, y), (x, y - 8), (0.8, 0.2, 0.2), 0.8)
        x, y = place(float(state[0]))
        disc(view, (x, y - 2.5), 2.5, (0.15, 0.15, 0.2))
        return view


class Pendulum(VecWorld):
    """Swing a pendulum up and hold it with a torque in [-2, 2]; reward -(angle^2 + 0.1 speed^2 + 0.001 torque^2).

    State: angle (rad, 0 = up), angular velocity in [-8, 8]; observation: cos, sin, angular velocity. Episodes only run out.
    """

    observation_space = Box((3,), -8.0, 8.0)
    action_space = Box((1,), -2.0, 2.0)
    time_limit = 200
    top_speed, gravity, dt = 8.0, 10.0, 0.05

    def initial(self, n: int) -> np.ndarray:
        """Any angle, speed within 1."""
        return self._uniform(n, 2, -1.0, 1.0) * np.array([math.pi, 1.0], self.dtype)

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Semi-implicit Euler; the angle is not wrapped in the state."""
        angle, speed = state.T
        torque = np.clip(action[:, 0].astype(state.dtype), -2.0, 2.0)
        wrapped = (angle + math.pi) % (2 * math.pi) - math.pi
        cost = wrapped * wrapped + 0.1 * (speed * speed) + 0.001 * (torque * torque)
        new = np.empty_like(state)
        speed = speed + (1.5 * self.gravity * np.sin(angle) + 3.0 * torque) * self.dt
        np.clip(speed, -self.top_speed, self.top_speed, out=new[:, 1])
        np.add(angle, new[:, 1] * self.dt, out=new[:, 0])
        return new, -cost.astype(np.float32), np.zeros(len(state), bool)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Cosine and sine of the angle, angular velocity."""
        seen = np.empty((len(state), 3), state.dtype)
        np.cos(state[:, 0], out=seen[:, 0])
        np.sin(state[:, 0], out=seen[:, 1])
        seen[:, 2] = state[:, 1]
        return seen

    def picture(self, state: np.ndarray) -> Tensor:
        """The rod about its pivot."""
        view = blank(64, 64)
        angle = float(state[0])
        line(view, (32, 32), (32 - 24 * math.sin(angle), 32 - 24 * math.cos(angle)), (0.8, 0.3, 0.3), 2.5)
        disc(view, (32, 32), 1.5, (0.1, 0.1, 0.1))
        return view


class Acrobot(VecWorld):
    """Two links hang from a pivot; torque -1, 0 or +1 on the joint must swing the tip above one link length; -1 a step.

    State: two angles and their velocities; observation: cos and sin of both angles, the velocities. Fourth-order Runge-Kutta.
    """

    observation_space = Box((6,), -9 * math.pi, 9 * math.pi)
    action_space = Discrete(3)
    time_limit = 500
    dt, top_first, top_second = 0.2, 4 * math.pi, 9 * math.pi

    def initial(self, n: int) -> np.ndarray:
        """Hanging almost still."""
        return self._uniform(n, 4, -0.1, 0.1)

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One Runge-Kutta step under constant torque; angles wrapped into [-pi, pi], speeds bounded."""
        torque = action.astype(state.dtype) - 1
        k1 = self._slope(state, torque)
        k2 = self._slope(state + self.dt / 2 * k1, torque)
        k3 = self._slope(state + self.dt / 2 * k2, torque)
        k4 = self._slope(state + self.dt * k3, torque)
        new = state + self.dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        new[:, :2] = (new[:, :2] + math.pi) % (2 * math.pi) - math.pi
        top = np.array([self.top_first, self.top_second], state.dtype)
        new[:, 2:] = np.clip(new[:, 2:], -top, top)
        terminated = -np.cos(new[:, 0]) - np.cos(new[:, 0] + new[:, 1]) > 1.0
        return new, terminated.astype(np.float32) - np.float32(1), terminated

    @staticmethod
    def _slope(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
        """Time derivative of [B, 4] by the equations in Sutton and Barto's book (unit masses and lengths, inertia 1, g = 9.8)."""
        first, second, spin1, spin2 = state.T
        cos, sin, g = np.cos(second), np.sin(second), 9.8
        d1, d2 = 3.5 + cos, 1.25 + 0.5 * cos
        phi2 = 0.5 * g * np.cos(first + second - math.pi / 2)
        phi1 = -0.5 * spin2 * spin2 * sin - spin2 * spin1 * sin + 1.5 * g * np.cos(first - math.pi / 2) + phi2
        turn2 = (torque + d2 / d1 * phi1 - 0.5 * spin1 * spin1 * sin - phi2) / (1.25 - d2 * d2 / d1)
        return np.stack((spin1, spin2, -(d2 * turn2 + phi1) / d1, turn2), 1)

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Cosine and sine of both angles, both velocities."""
        cos, sin = np.cos(state[:, :2]), np.sin(state[:, :2])
        return np.stack((cos[:, 0], sin[:, 0], cos[:, 1], sin[:, 1], state[:, 2], state[:, 3]), 1)

    def picture(self, state: np.ndarray) -> Tensor:
        """Both links and the height to reach."""
        view = blank(64, 64)
        first, second = float(state[0]), float(state[1])
        joint = (32 + 14 * math.sin(first), 32 + 14 * math.cos(first))
        tip = (joint[0] + 14 * math.sin(first + second), joint[1] + 14 * math.cos(first + second))
        line(view, (0, 18), (63, 18), (0.6, 0.6, 0.6), 0.6)
        line(view, (32, 32), joint, (0.2, 0.5, 0.6), 1.8)
        line(view, joint, tip, (0.2, 0.7, 0.5), 1.8)
        disc(view, (32, 32), 1.5, (0.1, 0.1, 0.1))
        return view
