"""How much context a frame's unit needs: agreement of units from short windows with units from whole clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vivavoce.units.hubert.model import HubertUnits
from vivavoce.units.model import UnitEncoder

QUIET = 0.01  # of a clip's loudest frame (40 dB below it): quieter frames, which agree too easily, are left out


def whole(units: UnitEncoder | HubertUnits, x: Tensor) -> Tensor:
    """A clip [1, T * hop], heard as if nothing came before or after, -> content units [T], nothing late."""
    if isinstance(units, HubertUnits):
        return units.content(x)[0]
    ahead = units.config.lookahead
    padded = torch.nn.functional.pad(x, (0, ahead * units.config.hop))
    (content, _), _ = units.read(units.spectra(padded)[0])
    return content[0, ahead:]


@torch.inference_mode()
def agreement(hear: Callable[[Tensor], Tensor], clips: Iterable[Tensor], hop: int, windows: list[int],
              lookaheads: list[int], every: int = 4) -> tuple[dict[int, dict[int, float]], float, int]:  # fmt: skip
    """The share of frames whose unit is the same from a window as from the whole clip.

    A window of w frames that ends with frame e gives, at look-ahead a, the unit of frame e - a, as `Sliding` would.
    Every frame that is judged is judged at all windows and look-aheads, so that these can be compared.

    Args:
        hear: a clip [1, T * hop] -> units [T].
        clips: waveforms [T * hop]; those of no more frames than the longest window and look-ahead are left out.
        windows, lookaheads: frames; a look-ahead counts within its window.
        every: judge each n-th frame.

    Returns:
        agreement by window, then by look-ahead (those that fit); the chance that two frames agree anyway; and how
        many frames were judged.

    Raises:
        ValueError: no clip was long enough.
    """
    hits = {w: {a: 0 for a in lookaheads if a < w} for w in windows}
    judged, seen = 0, Counter[int]()
    for x in clips:
        truth, heard = hear(x[None]), dict[tuple[int, int], Tensor]()
        loud = x.unfold(0, hop, hop).square().mean(1).sqrt()
        for f in range(max(windows) - 1, len(truth) - max(lookaheads), every):
            if loud[f] <= QUIET * loud.max():
                continue
            judged += 1
            seen[int(truth[f])] += 1
            for w, row in hits.items():
                for a in row:
                    end = f + a + 1
                    if (w, end) not in heard:  # frames share windows where look-aheads differ by a multiple of `every`
                        heard[w, end] = hear(x[None, (end - w) * hop : end * hop])
                    row[a] += int(heard[w, end][w - 1 - a] == truth[f])
    if not judged:
        raise ValueError(f"no clip is longer than {max(windows) + max(lookaheads)} frames")
    shares = {w: {a: n / judged for a, n in row.items()} for w, row in hits.items()}
    return shares, sum((n / judged) ** 2 for n in seen.values()), judged
