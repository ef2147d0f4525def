"""Sources in another real voice: what the model made of a clip is turned back into the clip.

Self-reconstruction never shows the model a source whose voice is not the target's. A conversion is such a source, and
the clip that it was made of is what should come of it (self-synthesised pairs: SelfVC, Neekhara et al. 2023). Nothing
of the source's voice helps there; a conversion's own mistakes are to be mended from what is left of the words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vivavoce.codec import Codec
from vivavoce.lm import Source


@torch.no_grad()
def echo(codec: Codec, said: Tensor, source: Source, delay: int, wave: Tensor) -> Tensor:
    """Conversions as sources.

    Args:
        said: what a language model said, vectors of the codec [N, T, d].
        source: the units that it said this of [N, T], `delay` frames ahead, with the F0 that it was said at.
        wave: the clips that the units were read from, [N, (T + L) * hop], as far ahead.

    Returns:
        waveforms like `wave`, said in the other voice. The codec's hop, `delay` and L frames at the end are not known
        yet and remain the clip's own.
    """
    hop, t = codec.config.hop, said.shape[1]
    at = (torch.arange(t, device=said.device) - delay).clamp_min(0)  # the frame that was said
    f0, periodicity, level = (x[:, at].float() for x in (source.f0, source.periodicity, source.level))
    y, _ = codec.synthesise(said, f0, periodicity, level)
    made = y[:, (codec.late + delay) * hop :].to(wave.dtype)
    return torch.cat((made, wave[:, made.shape[1] :]), dim=1)
