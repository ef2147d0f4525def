"""Speaker perturbation in the mel domain: what changes here is what the units are taught to forget.

Frequency warping moves formants and pitch together (vocal tract length perturbation, Jaitly & Hinton
2013); a smooth random equaliser changes timbre and channel (NANSY, Choi et al. 2021). `perturb_wave` does the same
to waveforms, for encoders that hear nothing else.
"""

from __future__ import annotations

import math

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


def envelope(mel: Tensor, cepstra: int = 13) -> Tensor:
    """The smooth part of log-mel [..., M]: its first `cepstra` cosines (cepstral liftering). What is left over is the
    fine structure, harmonics where they are resolved."""
    m = mel.shape[-1]
    at = (torch.arange(m, device=mel.device) + 0.5) * math.pi / m
    basis = torch.cos(at[:, None] * torch.arange(cepstra, device=mel.device)) * (2 / m) ** 0.5  # DCT-II, orthonormal
    basis[:, 0] *= 0.5**0.5
    return mel @ basis @ basis.T


def perturb(mel: Tensor, warp: float = 0.17, eq_db: float = 5.0, noise: float = 0.05, pitch: float = 0.0) -> Tensor:
    """Another speaker's version of log-mel [B, T, M]: random warp in 1 +- `warp`, equaliser, slight noise; and, under
    an envelope that stays where it is, harmonics moved by up to a factor of exp(`pitch`)."""
    b, _, m = mel.shape

    def factor(most: float) -> Tensor:
        return torch.exp((torch.rand(b, device=mel.device) * 2 - 1) * most)

    if pitch:
        smooth = envelope(mel)
        mel = smooth + warp_mel(mel - smooth, factor(pitch))
    out = warp_mel(mel, factor(warp)) + random_equaliser(b, m, eq_db, mel.device)
    return out + noise * torch.randn_like(out)


def spec_mask(mel: Tensor, bands: int, steps: int) -> Tensor:
    """Log-mel [B, T, M] with two stretches of up to `bands` bins and two of up to `steps` frames a row at their bins'
    means (SpecAugment, Park et al. 2019)."""
    b, t, m = mel.shape

    def hidden(size: int, most: int) -> Tensor:
        width = torch.randint(0, most + 1, (b, 1), device=mel.device)
        start = (torch.rand(b, 1, device=mel.device) * (size - width).clamp_min(1)).long()
        at = torch.arange(size, device=mel.device)
        return (at >= start) & (at < start + width)

    over = (hidden(m, bands) | hidden(m, bands))[:, None, :] | (hidden(t, steps) | hidden(t, steps))[:, :, None]
    return torch.where(over, mel.mean(1, keepdim=True), mel)


def warp_wave(x: Tensor, factor: Tensor, window: int = 1024, hop: int = 256) -> Tensor:
    """Waveform [B, n] with every frequency multiplied by `factor` [B], durations kept: a phase vocoder (Flanagan &
    Golden 1966) that moves magnitudes up the spectrum and lets phases run faster by the same factor."""
    hann = torch.hann_window(window, device=x.device)
    spectrum = torch.stft(x, window, hop, window=hann, return_complex=True, pad_mode="constant")  # [B, bins, frames]
    bins = spectrum.shape[1]
    place = (torch.arange(bins, device=x.device) / factor[:, None])[..., None]  # where each bin's content comes from
    low, inside = place.floor().long().clamp(max=bins - 2), place <= bins - 1

    def moved(values: Tensor, nearest: bool) -> Tensor:
        a, b = (values.gather(1, i.expand(-1, -1, values.shape[2])) for i in (low, low + 1))
        w = (place - low).clamp(0, 1)
        return torch.where(w < 0.5, a, b) if nearest else a + w * (b - a)

    turn = 2 * math.pi * hop / window * torch.arange(bins, device=x.device)[:, None]  # of a bin's centre, a hop
    angle = spectrum.angle()
    advance = torch.diff(angle, dim=2, prepend=angle[:, :, :1] * 0) - turn
    advance = advance - 2 * math.pi * torch.round(advance / (2 * math.pi)) + turn
    phase = (moved(advance, True) * factor[:, None, None]).double().cumsum(2)
    out = torch.polar(moved(spectrum.abs(), False) * inside, phase.remainder(2 * math.pi).float())
    return torch.istft(out, window, hop, window=hann, length=x.shape[1])


def perturb_wave(x: Tensor, warp: float = 0.17, eq_db: float = 5.0, noise: float = 0.003) -> Tensor:
    """Another speaker's version of waveforms [B, ...], flattened to samples and given back in their shape: random
    warp, equaliser, and noise of `noise` times the waveform's own root mean square."""
    flat = x.flatten(1)
    factor = torch.exp((torch.rand(len(flat), device=x.device) * 2 - 1) * warp)
    out = warp_wave(flat, factor)
    hann = torch.hann_window(512, device=x.device)
    spectrum = torch.stft(out, 512, 128, window=hann, return_complex=True, pad_mode="constant")
    spectrum = spectrum * torch.exp(random_equaliser(len(flat), spectrum.shape[1], eq_db, x.device)).transpose(1, 2)
    out = torch.istft(spectrum, 512, 128, window=hann, length=flat.shape[1])
    level = flat.square().mean(1, keepdim=True).sqrt()
    return (out + noise * level * torch.randn_like(out)).reshape(x.shape)
