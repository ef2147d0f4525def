"""Push/pull conversion at any sample rate and chunk size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vivavoce.core.errors import AudioError
from vivavoce.core.resample import Resampler
from vivavoce.engine import Engine

KNEE = 0.9  # amplitude above which the limiter bends


@dataclass(frozen=True)
class Latency:
    """Algorithmic delay of a stream in milliseconds, item by item. Compute and devices come on top."""

    frame: float  # samples wait until their frame of 20 ms is whole
    look_ahead: float  # of the units
    delay: float  # of the language model
    overlap: float  # of the codec's synthesis
    resampling: float  # both ways

    @property
    def total(self) -> float:
        """The sum: from a sample going in to the same instant coming out, at worst."""
        return self.frame + self.look_ahead + self.delay + self.overlap + self.resampling


def limit(x: Tensor) -> Tensor:
    """Keep peaks below 1 by a smooth, memoryless knee at `KNEE`; nothing changes below it."""
    over = x.abs() > KNEE
    bent = KNEE + (1.0 - KNEE) * torch.tanh((x.abs() - KNEE) / (1.0 - KNEE))
    return torch.where(over, x.sign() * bent, x)


class Stream:
    """One live conversion: `push` samples, get what is ready; `flush` for the tail.

    Over a whole stream exactly as many samples come out as went in, aligned with the input. Any chunking
    gives the same output, bit for bit.

    Args:
        engine: the chain for one voice.
        rate: sample rate in Hz of what goes in and comes out.
    """

    def __init__(self, engine: Engine, rate: int) -> None:
        self.engine, self.rate = engine, rate
        inner = engine.codec.config.sample_rate
        self._down, self._up = Resampler(rate, inner), Resampler(inner, rate)
        self.reset()

    def reset(self) -> None:
        """Back to the beginning of a stream."""
        self._state = self.engine.start()
        self._down_state: Any = None
        self._up_state: Any = None
        self._rest = torch.zeros(1, 0)
        self._skip = self.engine.lag * self.engine.hop
        self._taken = self._given = 0
        self._open = True

    @property
    def latency(self) -> Latency:
        """Algorithmic latency, itemised."""
        e = self.engine
        ms = 1000.0 * e.hop / e.codec.config.sample_rate
        down, up = self._down.lookahead / self.rate, self._up.lookahead / e.codec.config.sample_rate
        return Latency(ms, ms * e.lookahead, ms * e.settings.delay, ms, 1000.0 * (down + up))

    def push(self, samples: Tensor) -> Tensor:
        """Take any number of mono samples [n] in [-1, 1]; return those that are ready, [m].

        Raises:
            AudioError: NaN or infinite samples (nothing is taken), a wrong shape, or a flushed stream.
        """
        if not self._open:
            raise AudioError("the stream was flushed; call reset() to begin another")
        x = torch.as_tensor(samples, dtype=torch.float32)
        if x.ndim != 1:
            raise AudioError(f"push takes mono samples of shape [n], got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise AudioError("NaN or infinite samples in the stream")
        self._taken += len(x)
        y = self._advance(x[None], last=False)
        self._given += y.shape[1]
        return y[0].clone()  # an ordinary tensor: those made in inference mode refuse in-place work

    def flush(self) -> Tensor:
        """End the stream and return its tail, so that output and input are equally long."""
        if not self._open:
            return torch.zeros(0)
        self._open = False
        y = self._advance(torch.zeros(1, 0), last=True)[:, : self._taken - self._given]
        return torch.nn.functional.pad(y[0], (0, self._taken - self._given - y.shape[1]))

    @torch.inference_mode()
    def _advance(self, x: Tensor, last: bool) -> Tensor:
        hop = self.engine.hop
        x, self._down_state = self._down(x, self._down_state, last=last)
        x = torch.cat((self._rest, x), dim=1)
        if last:
            whole = math.ceil(x.shape[1] / hop) + self.engine.lag
            x = torch.nn.functional.pad(x, (0, whole * hop - x.shape[1]))
        n = x.shape[1] // hop * hop
        self._rest = x[:, n:]
        y, self._state = self.engine(x[:, :n], self._state)
        drop = min(self._skip, y.shape[1])
        self._skip -= drop
        y, self._up_state = self._up(limit(y[:, drop:]), self._up_state, last=last)
        return y.clamp(-1.0, 1.0)
