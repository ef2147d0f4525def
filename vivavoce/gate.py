"""A noise gate that decides on a stream's input and acts on its output, which comes later: look-ahead for nothing.

What is converted follows the source's level, so room noise between two sentences comes out as a faint voice. The
gate turns it down. Laughs begin with a burst and sobs with a breath hardly above the noise: the gate opens for
anything that stands out from the noise floor, opens *before* it (the stream's lag says what is coming), and stays
open long enough to bridge a sob's gaps. When in doubt it is open.
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

FRAME = 0.01  # seconds
OPEN_DB, CLOSE_DB = 6.0, 4.0  # above the noise floor
HOLD = 0.4  # seconds that it stays open after the last frame above CLOSE_DB
FADE_IN, FADE_OUT = 0.03, 0.15  # seconds, over the whole depth
FLOOR_DB = (-85.0, -35.0)  # dB re full scale, between which the noise floor is believed to lie
RISE = 3.0, 0.5  # dB a second by which the noise floor may rise while closed, while open
SMOOTH = 0.05  # seconds, time constant of the level by which the floor falls


class Floor:
    """The noise floor of one band: it falls with the level, and rises slowly."""

    def __init__(self) -> None:
        self.db = FLOOR_DB[1]
        self.level: float | None = None  # smoothed
        self.above = False

    def hear(self, level: float, open: bool) -> bool:
        """The next frame's level in dB -> whether it stands out."""
        self.level = level if self.level is None else self.level + (level - self.level) * FRAME / SMOOTH
        self.above = level > self.db + (CLOSE_DB if self.above else OPEN_DB)
        risen = self.db + FRAME * RISE[1 if open else 0]
        self.db = min(max(min(self.level, risen), FLOOR_DB[0]), FLOOR_DB[1])
        return self.above


class Gate:
    """Noise gate of one stream: `hear` every input sample, `apply` to every output sample, both from the first on.

    Args:
        rate: Hz.
        lookahead: seconds by which it opens before what it opens for; at most the stream's lag.
        depth: dB by which a closed gate turns down.
    """

    def __init__(self, rate: int, lookahead: float = 0.06, depth: float = 40.0) -> None:
        self.size = max(1, round(FRAME * rate))
        self.ahead = max(0, round(lookahead / FRAME))
        self.depth = depth
        self._memory = math.exp(-2.0 * math.pi * 1000.0 / rate)  # pre-emphasis of the bright band
        self.reset()

    def reset(self) -> None:
        """Back to the beginning of a stream, open and with no idea of the noise."""
        self._rest, self._last = torch.zeros(0), 0.0  # samples that wait for their frame; the one before them
        self._flat, self._bright = Floor(), Floor()  # hum hides breath, hiss hides moans: two bands, either opens
        self._hold = round(HOLD / FRAME)  # it begins open
        self._want: deque[bool] = deque()  # of the frames whose look-ahead is not yet complete
        self._gain = 0.0  # dB, at the end of the last frame in `_gains`
        self._gains = torch.ones(0)  # of the samples to come

    @property
    def open(self) -> bool:
        """Whether what is heard now is let through."""
        return self._hold > 0

    def hear(self, x: Tensor) -> None:
        """Take input samples [n]."""
        x = torch.cat((self._rest, x.float()))
        n = len(x) // self.size * self.size
        if n:
            before = torch.cat((torch.tensor([self._last]), x[: n - 1]))
            both = torch.stack((x[:n], x[:n] - self._memory * before))
            power = both.square().reshape(2, -1, self.size).mean(2)
            for flat, bright in (10.0 * torch.log10(power + 1e-12)).T.tolist():
                stands_out = self._flat.hear(flat, self.open) | self._bright.hear(bright, self.open)
                self._hold = round(HOLD / FRAME) if stands_out else max(0, self._hold - 1)
                self._want.append(self.open)
                if len(self._want) > self.ahead:
                    self._move()
            self._last = float(x[n - 1])
        self._rest = x[n:]

    def apply(self, y: Tensor) -> Tensor:
        """Output samples [m], in the order and at the place of the input's -> the same, quiet where nothing was.

        Samples whose look-ahead was not heard (at the end of a stream) get the gain of what was heard last.
        """
        while len(self._gains) < len(y) and self._want:
            self._move()
        g = self._gains[: len(y)]
        self._gains = self._gains[len(y) :]
        if len(g) < len(y):
            g = torch.cat((g, torch.full((len(y) - len(g),), 10.0 ** (self._gain / 20.0))))
        return y * g

    def _move(self) -> None:
        """The gains of the oldest frame that waits."""
        up, down = self.depth * FRAME / FADE_IN, self.depth * FRAME / FADE_OUT
        goal = min(0.0, self._gain + up) if any(self._want) else max(-self.depth, self._gain - down)
        self._want.popleft()
        ramp = torch.linspace(self._gain, goal, self.size + 1)[1:]
        self._gains = torch.cat((self._gains, 10.0 ** (ramp / 20.0)))
        self._gain = goal
