"""Streaming polyphase resampling by a rational factor."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.core.errors import AudioError

ZERO_CROSSINGS = 16
KAISER_BETA = 9.0  # stop band about -90 dB
BLOCK = 1 << 17  # weights of one gathered matrix, halved: 1 MB, which stays in cache


class Resampler(nn.Module):
    """Windowed-sinc resampler; `y, state = resampler(x, state, last)` on any number of samples.

    The filter is centred: output sample n stands at input time n * rate_in / rate_out, and needs
    `lookahead` input samples beyond it. With `last=True` the tail is flushed against zeros, and the
    total output length is ceil(samples_in * rate_out / rate_in).

    Args:
        rate_in, rate_out: Hz, whole numbers.

    Raises:
        AudioError: a rate outside 1 kHz to 768 kHz.
    """

    taps: Tensor

    def __init__(self, rate_in: int, rate_out: int) -> None:
        super().__init__()
        for rate in (rate_in, rate_out):
            if not 1000 <= rate <= 768_000:
                raise AudioError(f"sample rate {rate} Hz is outside 1000 to 768000 Hz")
        g = math.gcd(rate_in, rate_out)
        self.rate_in, self.rate_out = rate_in, rate_out
        self.up, self.down = rate_out // g, rate_in // g
        cutoff = min(1.0, self.up / self.down) * 0.96  # of the input's Nyquist frequency
        self.reach = math.ceil(ZERO_CROSSINGS / cutoff) if self.up != self.down else 0
        # taps[p, j]: weight of input (base - half + 1 + j) for an output at phase p / up after `base`
        j = np.arange(2 * self.reach) - self.reach + 1
        t = j[None, :] - (np.arange(self.up) / self.up)[:, None]
        w = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (t / max(self.reach, 1)) ** 2, 0, None)))
        taps = cutoff * np.sinc(cutoff * t) * w / np.i0(KAISER_BETA)
        taps /= taps.sum(axis=1, keepdims=True) if self.reach else 1.0
        self.register_buffer("taps", torch.from_numpy(taps).float(), persistent=False)

    @property
    def lookahead(self) -> int:
        """Input samples that must follow an output sample before it can be computed."""
        return self.reach

    def forward(self, x: Tensor, state: tuple | None = None, last: bool = False) -> tuple[Tensor, tuple]:
        """x: [B, samples]. State: (kept input [B, n], start of it, samples in, samples out)."""
        if self.up == self.down:
            return x, state or ()
        if state is None:
            state = (x.new_zeros(x.shape[0], self.reach), -self.reach, 0, 0)
        kept, start, n_in, n_out = state
        n_in += x.shape[1]
        kept = torch.cat((kept, x), dim=1)
        if last:
            end = -(-n_in * self.up // self.down)
            kept = torch.cat((kept, x.new_zeros(x.shape[0], self.reach + 1)), dim=1)
        else:  # base(n) + half <= last input index
            end = max(n_out, ((n_in - self.reach) * self.up - 1) // self.down + 1)
        pieces, block = [], max(1, BLOCK // self.reach)
        while n_out < end:  # bounded blocks keep the gathered matrix small
            n = np.arange(n_out, min(end, n_out + block), dtype=np.int64) * self.down
            base, phase = n // self.up, n % self.up
            first = torch.from_numpy(base - self.reach + 1 - start)
            rows = kept.unfold(1, 2 * self.reach, 1)[:, first]
            pieces.append((rows * self.taps[torch.from_numpy(phase)]).sum(-1))
            n_out += len(n)
        y = torch.cat(pieces, dim=1) if pieces else x.new_zeros(x.shape[0], 0)
        keep_from = min(max(n_out * self.down // self.up - self.reach, start), start + kept.shape[1])
        return y, (kept[:, keep_from - start :], keep_from, n_in, n_out)


def resample(x: Tensor, rate_in: int, rate_out: int) -> Tensor:
    """One-call resampling of [B, samples]; length ceil(samples * rate_out / rate_in)."""
    y, _ = Resampler(rate_in, rate_out)(x, None, last=True)
    return y
