"""Spectral reconstruction losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiResolutionSTFT(nn.Module):
    """Log-magnitude L1 plus spectral convergence over several windows (Yamamoto et al. 2020, eqs 4-7).

    Floor 1e-4 in magnitude relative to the clip's level keeps silence from dominating the log.
    """

    def __init__(self, windows: tuple[int, ...] = (256, 512, 1024, 2048)) -> None:
        super().__init__()
        self.windows = windows
        for w in windows:
            self.register_buffer(f"hann_{w}", torch.hann_window(w), persistent=False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Generated y and reference x, [B, samples] -> scalar."""
        scale = x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-3)
        y, x = y / scale, x / scale
        total = x.new_zeros(())
        for w in self.windows:
            hann = getattr(self, f"hann_{w}")
            a, b = (torch.stft(s, w, w // 4, window=hann, return_complex=True).abs() / w**0.5 for s in (y, x))
            log = F.l1_loss(torch.log(a + 3e-3), torch.log(b + 3e-3))
            convergence = (a - b).square().sum((1, 2)).sqrt() / b.square().sum((1, 2)).sqrt().clamp_min(1e-3)
            total = total + log + convergence.clamp_max(2.0).mean()
        return total / len(self.windows)
