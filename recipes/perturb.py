"""Speaker perturbation in the mel domain: what changes here is what the units are taught to forget.

Frequency warping moves formants and pitch together (vocal tract length perturbation, Jaitly & Hinton
2013); a smooth random equaliser changes timbre and channel (NANSY, Choi et al. 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp_mel(mel: Tensor, factor: Tensor, sample_rate: int = 16000, f_min: float = 40.0) -> Tensor:
    """Stretch the frequency axis of log-mel [B, T, M] by `factor` [B] (1.1: formants 10 % up)."""
    m = mel.shape[-1]
    top = 2595.0 * torch.log10(torch.tensor(1.0 + sample_rate / 2 / 700.0))
    low = 2595.0 * torch.log10(torch.tensor(1.0 + f_min / 700.0))
    step = (top - low) / (m + 1)
    centre = 700.0 * (10.0 ** ((low + step * torch.arange(1, m + 1)) / 2595.0) - 1.0)
    source = 2595.0 * torch.log10(1.0 + centre.to(mel.device)[None] / factor[:, None] / 700.0)
    place = ((source - low) / step - 1.0).clamp(0, m - 1.0)
    i = place.floor().long().clamp(max=m - 2)
    w = (place - i)[:, None, :]
    index = i[:, None, :].expand(-1, mel.shape[1], -1)
    return mel.gather(2, index) * (1 - w) + mel.gather(2, index + 1) * w


def random_equaliser(batch: int, bands: int, spread_db: float, device: torch.device) -> Tensor:
    """Smooth random gain curves in nepers [B, 1, bands]: random values at 6 knots, interpolated."""
    knots = torch.randn(batch, 1, 6, device=device) * spread_db / 8.686
    return F.interpolate(knots, size=bands, mode="linear", align_corners=True)


def perturb(mel: Tensor, warp: float = 0.17, eq_db: float = 5.0, noise: float = 0.05) -> Tensor:
    """Another speaker's version of log-mel [B, T, M]: random warp in 1 +- `warp`, equaliser, slight noise."""
    b, _, m = mel.shape
    factor = torch.exp((torch.rand(b, device=mel.device) * 2 - 1) * warp)
    out = warp_mel(mel, factor) + random_equaliser(b, m, eq_db, mel.device)
    return out + noise * torch.randn_like(out)
