"""What training does to its examples: speed, masks, jittered units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vivavoce.core import radix
from vivavoce.recipes.corpus import HOP, RATE
from vivavoce.recipes.data import faster
from vivavoce.recipes.perturb import envelope, perturb, spec_mask
from vivavoce.recipes.train_lm import jitter


def test_jitter_moves_levels_by_one() -> None:
    rng, levels = np.random.default_rng(0), [5, 3, 4]
    units = rng.integers(0, 60, 400)
    moved = jitter(units, levels, 0.3, rng)
    far = (radix.unpack(torch.from_numpy(moved), levels) - radix.unpack(torch.from_numpy(units), levels)).abs()
    assert int(far.max()) == 1 and 0.1 < float((far > 0).float().mean()) < 0.3  # at the ends, some lead nowhere
    assert (moved < 60).all() and (moved >= 0).all()
    assert (jitter(units, levels, 0.0, rng) == units).all() and (jitter(units, [], 0.5, rng) == units).all()


@pytest.mark.parametrize("twentieths", [17, 20, 23])
def test_faster_speech_is_higher_and_keeps_its_labels(twentieths: int) -> None:
    n, frames = 60, 50
    wave = np.sin(2 * np.pi * 200 * np.arange(n * HOP) / RATE).astype(np.float32)
    item = {"wave": wave, "f0": np.full(n, 200, np.float32), "teacher": np.arange(n), "clip": np.int64(3)}
    out = faster(item, twentieths, frames)
    assert len(out["wave"]) == frames * HOP and len(out["f0"]) == len(out["teacher"]) == frames
    spectrum = np.abs(np.fft.rfft(out["wave"] * np.hanning(frames * HOP)))
    heard = spectrum.argmax() * RATE / (frames * HOP)
    assert abs(heard - 10 * twentieths) < 1.5 and abs(float(out["f0"][0]) - 10 * twentieths) < 1e-3
    assert abs(out["teacher"][-1] - (frames - 0.5) * twentieths / 20) <= 1  # the label of what is heard there


def test_masks_hide_bins_and_frames() -> None:
    mel = torch.randn(64, 40, 30, generator=torch.Generator().manual_seed(0))
    out = spec_mask(mel, 8, 6)
    hidden = out != mel
    assert torch.equal(torch.where(hidden, mel.mean(1, keepdim=True), mel), out)
    bins, steps = hidden.all(1), hidden.all(2)
    assert 0 < float(bins.float().mean()) < 16 / 30 and int(bins.sum(1).max()) <= 16
    assert 0 < float(steps.float().mean()) < 12 / 40 and int(steps.sum(1).max()) <= 12
    assert torch.equal(hidden, bins[:, None, :] | steps[:, :, None])
    assert torch.equal(spec_mask(mel, 0, 0), mel)


def test_pitch_moves_under_an_envelope_that_stays() -> None:
    bins = torch.arange(80.0)
    formants = 2 * torch.cos(bins / 12)  # smooth: 80 bins hold one period and a bit
    harmonics = torch.sin(bins * 2 * torch.pi / 4)  # every fourth bin
    mel = (formants + harmonics).expand(8, 20, 80)
    assert float((envelope(mel)[..., 5:75] - formants[5:75]).abs().mean()) < 0.15
    torch.testing.assert_close(envelope(envelope(mel)), envelope(mel))
    torch.manual_seed(0)
    out = perturb(mel, warp=0.0, eq_db=0.0, noise=0.0, pitch=0.4)
    assert float((envelope(out) - envelope(mel)).abs().mean()) < 0.15
    spacing = 80 / torch.fft.rfft(out[:, 0] - envelope(out)[:, 0]).abs().argmax(-1)  # bins from harmonic to harmonic
    assert float(spacing.min()) < 3.7 and float(spacing.max()) > 4.3 and float(spacing.max()) < 4 * 1.6
    same = perturb(mel, warp=0.0, eq_db=0.0, noise=0.0)
    torch.testing.assert_close(same, mel)
