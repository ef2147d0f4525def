"""Live pitch: normalised autocorrelation over log-spaced lags, read by a small causal network.

The network is distilled from an offline tracker; it sees 40 ms past the instant it reports.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.frames import Framing
from vivavoce.core.layers import ConvNeXtStack, State

F_MIN, BINS_PER_OCTAVE, BINS = 50.0, 24, 108  # 50 Hz to 1.1 kHz: sobs creak, laughs reach 1 kHz


class LagFeatures(nn.Module):
    """Autocorrelation of a 64 ms window, normalised, in log-spaced lag bins: [B, T, 1024] -> [B, T, BINS].

    A bin holds the maximum between the midpoints to its neighbours: at low pitch the bins are wider than
    the peak of a bright voice. The spectrum is zero-padded fourfold before the inverse transform, so that
    short lags are resolved; between those points the correlation is interpolated.
    """

    POINTS = 12  # a bin; they overlap at high pitch and leave no gap wider than 3/4 sample at 50 Hz

    hann: Tensor
    low: Tensor
    frac: Tensor
    bias: Tensor

    def __init__(self, sample_rate: int, window: int = 1024, over: int = 4) -> None:
        super().__init__()
        self.n, self.over = 2 * window, over
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        inner = (torch.arange(self.POINTS, dtype=torch.float64) + 0.5) / self.POINTS - 0.5
        place = torch.arange(BINS, dtype=torch.float64)[:, None] + inner
        lags = sample_rate / (F_MIN * 2.0 ** (place / BINS_PER_OCTAVE)) * over  # [BINS, POINTS]
        low = lags.floor().long()
        self.last = int(low.max()) + 2
        self.register_buffer("low", low.reshape(-1), persistent=False)
        self.register_buffer("frac", (lags - low).float().reshape(-1), persistent=False)
        own = self._correlate(torch.ones(1, window) * self.hann)[0]
        self.register_buffer("bias", (own / own[0]).clamp_min(0.05), persistent=False)

    def _correlate(self, x: Tensor) -> Tensor:
        power = torch.fft.rfft(x, n=self.n).abs().square()
        pad = self.n * self.over // 2 + 1 - power.shape[-1]
        return torch.fft.irfft(F.pad(power, (0, pad)), n=self.n * self.over)[..., : self.last]

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, frames: Tensor) -> Tensor:
        x = frames - frames.mean(-1, keepdim=True)
        r = self._correlate(x * self.hann)
        r = r / (r[..., :1] + 1e-6) / self.bias
        points = r[..., self.low] * (1 - self.frac) + r[..., self.low + 1] * self.frac
        return points.unflatten(-1, (BINS, self.POINTS)).amax(-1).clamp(-1.0, 1.5)


class PitchTracker(nn.Module):
    """F0 and periodicity of the instant 40 ms before the newest sample.

    Args:
        sample_rate: Hz.
        hop: samples a frame.
    """

    def __init__(self, sample_rate: int, hop: int, dim: int, depth: int) -> None:
        super().__init__()
        self.framing = Framing(1024, hop)
        self.lags = LagFeatures(sample_rate)
        self.net = ConvNeXtStack(BINS + 1, dim, depth, kernel_size=5)
        self.head = nn.Linear(dim, BINS + 1)

    def logits(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Waveform [B, T * hop] -> [B, T, BINS + 1]: pitch bins, then the voicing logit."""
        framing, net = state or (None, None)
        frames, framing = self.framing(x, framing)
        level = torch.log10(frames.square().mean(-1, keepdim=True) + 1e-8) / 4.0 + 1.0
        y, net = self.net(torch.cat((self.lags(frames), level), dim=-1), net)
        return self.head(y), (framing, net)

    def forward(self, x: Tensor, state: State = None) -> tuple[tuple[Tensor, Tensor], State]:
        """Waveform [B, T * hop] -> (F0 in Hz, periodicity in 0 to 1), each [B, T].

        Frame t reports time (t - 1) * hop. Unvoiced frames carry the last voiced F0.
        """
        inner, held = state or (None, None)
        y, inner = self.logits(x, inner)
        raw = decode_pitch(y[..., :BINS])
        periodicity = torch.sigmoid(y[..., BINS])
        held = x.new_full((x.shape[0],), 150.0) if held is None else held
        out = []
        for t in range(raw.shape[1]):
            held = torch.where(periodicity[:, t] > 0.2, raw[:, t], held)
            out.append(held)
        return (torch.stack(out, 1), periodicity), (inner, held)


def encode_pitch(f0: Tensor) -> Tensor:
    """F0 in Hz [...] -> soft target over bins [..., BINS]: a Gaussian of 25 cents around the true value."""
    place = BINS_PER_OCTAVE * torch.log2(f0.clamp_min(20.0) / F_MIN)
    d = torch.arange(BINS, device=f0.device) - place.clamp(0, BINS - 1)[..., None]
    return torch.softmax(-0.5 * (d / 0.6).square(), dim=-1)


def decode_pitch(logits: Tensor) -> Tensor:
    """Logits [..., BINS] -> Hz: the mean of log-frequency around the best bin (as in CREPE, Kim et al. 2018)."""
    best = logits.argmax(-1, keepdim=True)
    near = (best + torch.arange(-2, 3, device=logits.device)).clamp(0, BINS - 1)
    w = torch.softmax(logits.gather(-1, near).float(), dim=-1)
    return F_MIN * torch.exp((w * near).sum(-1) * (math.log(2.0) / BINS_PER_OCTAVE))
