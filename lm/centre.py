"""The speaker's mean of the units: what is slow in them is the voice, what is quick is what is said.

Units of another speaker differ from the target's foremost in their mean, and a model that was trained on clips of one
speaker at a time copies that. So a stream moves a source's levels by the difference between the means of prompt and
source, as its F0 is moved to the target's register: cepstral mean normalisation (Atal 1974) on units, as AdaIN-VC
(Chou et al. 2019) does it to features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOICED = 0.5  # periodicity from which a frame counts
PRIOR = 25.0  # voiced frames that the mean over all speakers is worth, before anything is heard
MEMORY = 1000.0  # voiced frames after which older ones are forgotten


class Centre(nn.Module):
    """Means of levels over voiced frames, and sources moved from theirs to the prompt's.

    Args:
        levels: how many each of the C channels has.
    """

    middle: Tensor  # [C], the mean over all speakers: learnt as batch normalisation learns its own
    top: Tensor

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.register_buffer("top", torch.tensor(levels, dtype=torch.float32) - 1.0, persistent=False)
        self.register_buffer("middle", self.top / 2.0)

    def mean(self, levels: Tensor, periodicity: Tensor) -> Tensor:
        """Levels [B, T, C] and periodicity [B, T] of a prompt -> their mean over voiced frames [B, C]; without any,
        `middle`."""
        voiced = (periodicity > VOICED).float()[..., None]
        n, total = voiced.sum(1), (voiced * levels).sum(1)
        return torch.where(n > 0, total / n.clamp_min(1.0), self.middle)

    def start(self, rows: int) -> Tensor:
        """What is known of a source that was not heard yet: frames and sums of levels [rows, 1 + C]."""
        return PRIOR * torch.cat((self.middle.new_ones(1), self.middle)).repeat(rows, 1)

    def known(self, levels: Tensor, periodicity: Tensor) -> Tensor:
        """What is known of a source after levels [B, T, C] and periodicity [B, T] of it, from now on as sure as
        `MEMORY` frames make it: [B, 1 + C]. Of little voice it is little more than `middle`, as it is in a stream."""
        voiced = (periodicity > VOICED).float()[..., None]
        heard = self.start(len(levels)) + (voiced * torch.cat((voiced, levels), dim=-1)).sum(1)
        return MEMORY * heard / heard[:, :1]

    def forward(self, levels: Tensor, periodicity: Tensor, to: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of a frame [B, 1, C] -> the same, moved from the source's running mean (this frame included) to the
        mean `to` [B, C] of the prompt, within bounds; and what is then known of the source, [B, 1 + C]."""
        voiced = (periodicity > VOICED).float()
        keep = 1.0 - voiced * (heard[:, :1] >= MEMORY).float() / MEMORY
        heard = heard * keep + voiced * torch.cat((torch.ones_like(voiced), levels[:, 0]), dim=1)
        moved = levels + (to - heard[:, 1:] / heard[:, :1])[:, None]
        return torch.minimum(moved.clamp_min(0.0), self.top), heard

    @torch.no_grad()
    def learn(self, mean: Tensor, momentum: float = 0.01) -> None:
        """Follow the means [B, C] of a batch of speakers."""
        self.middle.lerp_(mean.mean(0), momentum)
