"""Games on small grids: a 10x10 Breakout after MinAtar (Young and Tian 2019, arXiv 1903.03176) and a maze of fixed walls.

Observations are planes [C, H, W] of zeros and ones (float32).
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor

from cambrian.worlds.control.canvas import cells
from cambrian.worlds.control.vec import Box, Discrete, VecWorld

_HEADER = 6  # ball x, ball y, direction x, direction y, paddle, struck; then 30 bricks, then the previous ball
_BRICKS = slice(6, 36)


class Breakout(VecWorld):
    """Bounce the ball off a paddle (0 stay, 1 left, 2 right) into three rows of bricks, +1 each; a lost ball ends the episode.

    The ball moves diagonally. A brick is removed and turns the ball round vertically; the ball must leave the bricks before it can
    strike the next one. Hitting the paddle's cell sends the ball back up, meeting it on a corner also reverses it sideways.
    A cleared wall is built anew. Planes: paddle, ball, trail (the ball's last place), bricks. Random only in the start.
    """

    observation_space = Box((4, 10, 10), 0.0, 1.0)
    action_space = Discrete(3)
    time_limit = 1000

    def initial(self, n: int) -> np.ndarray:
        """The ball on row 3 at the left or right wall, moving inwards and down; the paddle in the middle."""
        side = torch.randint(0, 2, (n,), generator=self.generator).numpy()
        state = np.zeros((n, 38), np.int64)
        state[:, 0] = state[:, 36] = side * 9
        state[:, 1] = state[:, 37] = 3
        state[:, 2], state[:, 3], state[:, 4] = 1 - 2 * side, 1, 4
        state[:, _BRICKS] = 1
        return state

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Paddle, walls, bricks, paddle hit, in this order."""
        x, y, dx, dy, paddle, struck = state[:, :_HEADER].T
        new = state.copy()
        paddle = np.clip(paddle + (action == 2) - (action == 1), 0, 9)
        nx, ny = x + dx, y + dy
        dx = np.where((nx < 0) | (nx > 9), -dx, dx)
        nx = np.clip(nx, 0, 9)
        ceiling = ny < 0
        ny, dy = np.where(ceiling, 0, ny), np.where(ceiling, 1, dy)
        hit, inside = self._strike(new[:, _BRICKS], nx, ny, struck == 1)
        bottom = (ny == 9) & ~hit
        cleared = bottom & ~new[:, _BRICKS].any(1)
        new[cleared, _BRICKS] = 1
        corner = bottom & (x != paddle) & (nx == paddle)
        saved = corner | (bottom & (x == paddle))
        dx = np.where(corner, -dx, dx)
        dy = np.where(saved, -1, np.where(hit, -dy, dy))
        ny = np.where(saved | hit, y, ny)
        struck = hit | (inside & (struck == 1))
        for i, column in enumerate((nx, ny, dx, dy, paddle, struck)):
            new[:, i] = column
        new[:, 36], new[:, 37] = x, y
        return new, hit.astype(np.float32), bottom & ~saved

    @staticmethod
    def _strike(bricks: np.ndarray, x: np.ndarray, y: np.ndarray, struck: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Remove from [B, 30], in place, the brick under the ball unless it has just struck one: (hit, on a brick) [B]."""
        row, place = np.arange(len(bricks)), (np.clip(y, 1, 3) - 1) * 10 + x
        inside = (y >= 1) & (y <= 3) & (bricks[row, place] == 1)
        hit = inside & ~struck
        bricks[row[hit], place[hit]] = 0
        return hit, inside

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Planes [B, 4, 10, 10]."""
        planes = np.zeros((len(state), 4, 100), np.float32)
        row = np.arange(len(state))
        planes[row, 0, 90 + state[:, 4]] = 1
        planes[row, 1, state[:, 1] * 10 + state[:, 0]] = 1
        planes[row, 2, state[:, 37] * 10 + state[:, 36]] = 1
        planes[:, 3, 10:40] = state[:, _BRICKS]
        return planes.reshape(-1, 4, 10, 10)

    def picture(self, state: np.ndarray) -> Tensor:
        """Bricks red, paddle blue, ball white, trail grey."""
        return _paint(
            self.observe(state[None])[0], ((0.3, 0.5, 1.0), (1.0, 1.0, 1.0), (0.4, 0.4, 0.4), (0.9, 0.3, 0.2))
        )


_MAZE = (
    "#########",
    "#...#...#",
    "#.#.#.#.#",
    "#.#...#.#",
    "#.#####.#",
    "#...#...#",
    "###.#.###",
    "#......G#",
    "#########",
)


class GridMaze(VecWorld):
    """Walk from a random free cell to the goal: up, right, down, left; +1 at the goal, which ends the episode, else -0.01 a step.

    Planes [3, 9, 9]: walls, the agent, the goal. `distances` holds each cell's steps to the goal, so that the best possible
    return from any start is known.
    """

    observation_space = Box((3, 9, 9), 0.0, 1.0)
    action_space = Discrete(4)
    time_limit = 100
    step_cost = 0.01
    walls = np.array([[c == "#" for c in row] for row in _MAZE])
    moves = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
    goal: tuple[int, int] = (7, 7)

    def initial(self, n: int) -> np.ndarray:
        """A free cell other than the goal: (row, column)."""
        free = np.argwhere(~self.walls)
        free = free[(free != self.goal).any(1)]
        return free[torch.randint(0, len(free), (n,), generator=self.generator).numpy()]

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A step into a wall goes nowhere."""
        new = state + self.moves[action]
        new = np.where(self.walls[new[:, 0], new[:, 1]][:, None], state, new)
        terminated = (new == self.goal).all(1)
        return new, np.where(terminated, np.float32(1), np.float32(-self.step_cost)), terminated

    def observe(self, state: np.ndarray) -> np.ndarray:
        """Planes [B, 3, 9, 9]."""
        planes = np.zeros((len(state), 3, 9, 9), np.float32)
        planes[:, 0] = self.walls
        planes[np.arange(len(state)), 1, state[:, 0], state[:, 1]] = 1
        planes[:, 2, self.goal[0], self.goal[1]] = 1
        return planes

    @classmethod
    def distances(cls) -> np.ndarray:
        """Steps to the goal from every cell [9, 9], by breadth-first search; -1 for walls."""
        far = np.full(cls.walls.shape, -1)
        far[cls.goal] = 0
        queue: deque[tuple[int, int]] = deque([cls.goal])
        while queue:
            row, column = queue.popleft()
            for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if not cls.walls[r, c] and far[r, c] < 0:
                    far[r, c] = far[row, column] + 1
                    queue.append((r, c))
        return far

    def picture(self, state: np.ndarray) -> Tensor:
        """Walls grey, agent blue, goal green."""
        return _paint(self.observe(state[None])[0], ((0.5, 0.5, 0.5), (0.3, 0.5, 1.0), (0.2, 0.8, 0.3)))


def _paint(planes: np.ndarray, colours: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Planes [C, H, W] painted over each other, the first on top: [3, 6H, 6W]."""
    view = torch.zeros(3, *planes.shape[1:])
    for plane, colour in reversed(list(zip(planes, colours))):
        view = torch.where(torch.from_numpy(plane[None] > 0), torch.tensor(colour)[:, None, None], view)
    return cells(view, 6)
