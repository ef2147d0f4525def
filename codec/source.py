"""The sound source: a band-limited pulse train at F0 and white noise, as a stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vivavoce.core import rng
from vivavoce.core.layers import State


class Excitation(nn.Module):
    """Pulse train and noise for a frame grid, in blocks of `hop` samples.

    The pulse train holds all harmonics below the Nyquist frequency at equal amplitude, by the closed
    form of the Dirichlet kernel, scaled to unit power: (sin((H + 1/2) x) / (2 sin(x / 2)) - 1/2) * sqrt(2 / H).
    """

    ramp: Tensor

    def __init__(self, sample_rate: int, hop: int) -> None:
        super().__init__()
        self.sample_rate, self.hop = sample_rate, hop
        self.register_buffer("ramp", torch.arange(1, hop + 1, dtype=torch.float64) / hop, persistent=False)

    def forward(self, f0: Tensor, seed: int | Tensor = 0, state: State = None) -> tuple[Tensor, Tensor, State]:
        """f0 [B, T] in Hz at times (t + 1) * hop.

        Returns:
            pulses, noise: [B, T * hop], unit power.
            state: (phase in cycles [B], last F0 [B], frames so far).
        """
        b, t = f0.shape
        f = f0.double().clamp(20.0, self.sample_rate / 2 - 1)
        if state is None:
            state = (f.new_zeros(b), f[:, 0], torch.zeros((), dtype=torch.int64, device=f0.device))
        phase0, last, count = state
        before = torch.cat((last[:, None], f[:, :-1]), dim=1)
        hz = before[..., None] + (f - before)[..., None] * self.ramp  # [B, T, hop]
        cycles = (hz / self.sample_rate).cumsum(-1)
        # phase at the start of each frame, wrapped frame by frame: the same for any chunking
        starts, p = [], phase0
        ends = cycles[..., -1]
        for i in range(t):
            starts.append(p)
            p = (p + ends[:, i]) % 1.0
        cycles = (cycles + torch.stack(starts, 1)[..., None]) % 1.0
        x = (2 * math.pi * cycles).float()
        h = (self.sample_rate / 2 / hz).floor().clamp_min(1).float()
        half = torch.sin(x / 2)
        near = half.abs() < 1e-4  # at the pulse itself the kernel's limit is H + 1/2
        kernel = torch.where(near, h + 0.5, torch.sin((h + 0.5) * x) / torch.where(near, 1.0, 2 * half))
        pulses = ((kernel - 0.5) * torch.sqrt(2.0 / h)).reshape(b, t * self.hop)
        if self.training:
            noise = torch.randn_like(pulses)
        else:
            n = count * self.hop + torch.arange(t * self.hop, device=f0.device)
            noise = ((rng.uniform(seed, n) - 0.5) * math.sqrt(12.0)).expand(b, -1)
        return pulses, noise, (p, f[:, -1], count + t)
