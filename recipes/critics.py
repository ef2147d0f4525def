"""Critics that listen to code vectors: whose voice is it, and what is said?

Self-reconstruction never asks for another voice: prompt and source are of one speaker, and what leaks of the source's
voice only helps. A critic can be asked of conversions, too: small convolutional networks that were trained on the
codec's vectors of real speech (`vivavoce train critics`) say how likely the prompt's speaker is, and how likely the
content units of the source. Their gradients reach the language model and, in joint training, the units (speaker
consistency as in YourTTS, Casanova et al. 2022, and content consistency as in StarGANv2-VC, Li et al. 2021; here on
vectors at 50 Hz, where that is cheap). Nothing of them is needed to convert.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core import radix
from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.lm import Source


@dataclass
class CriticConfig:
    """Shape of the critics."""

    code_dim: int = 64
    speakers: int = 2
    content_levels: list[int] = field(default_factory=lambda: [5, 5])  # of the units that are said
    dim: int = 192
    layers: int = 4
    dropout: float = 0.1


class Trunk(nn.Module):
    """Vectors [B, T, code_dim] -> features [B, T, dim], each of some 200 ms around it."""

    def __init__(self, c: CriticConfig) -> None:
        super().__init__()
        self.first = nn.Conv1d(c.code_dim, c.dim, 5, padding=2)
        self.more = nn.ModuleList(nn.Conv1d(c.dim, c.dim, 3, padding=1) for _ in range(c.layers - 1))
        self.norms = nn.ModuleList(nn.GroupNorm(1, c.dim) for _ in range(c.layers))
        self.drop = nn.Dropout(c.dropout)

    def forward(self, z: Tensor) -> Tensor:
        y = F.gelu(self.norms[0](self.first(z.transpose(1, 2))))
        for conv, norm in zip(self.more, self.norms[1:]):
            y = y + self.drop(F.gelu(norm(conv(y))))
        return y.transpose(1, 2)


class Critics(PretrainedModule):
    """Two networks that share nothing: one names speakers, one reads content units."""

    model_type: ClassVar[str] = "vivavoce-critics"
    Config: ClassVar[type] = CriticConfig

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.config = c = config
        self.hears, self.reads = Trunk(c), Trunk(c)
        self.attend = nn.Linear(c.dim, 1)
        self.who = nn.Sequential(nn.Linear(2 * c.dim, c.dim), nn.GELU(), nn.Linear(c.dim, c.speakers))
        self.said = nn.Linear(c.dim, sum(c.content_levels))

    def hearing(self) -> nn.Module:
        """What names speakers."""
        return nn.ModuleList((self.hears, self.attend, self.who))

    def forward(self, z: Tensor, mask: Tensor, speaker: Tensor, content: Tensor) -> dict[str, Tensor]:
        """Both questions: see `name` and `read`."""
        return {**self.name(z, mask, speaker), **self.read(z, mask, content)}

    def speaker(self, z: Tensor, mask: Tensor) -> Tensor:
        """Vectors [B, T, code_dim], of which those count where mask [B, T] is 1 -> logits [B, speakers], by attentive
        statistics (Okabe et al. 2018)."""
        h = self.hears(z)
        w = self.attend(h).float().masked_fill(mask[..., None] == 0, -1e4).softmax(1)
        mean = (w * h).sum(1)
        spread = ((w * h.square()).sum(1) - mean.square()).clamp_min(1e-5).sqrt()
        return self.who(torch.cat((mean, spread), dim=-1))

    def words(self, z: Tensor) -> list[Tensor]:
        """Vectors [B, T, code_dim] -> logits [B, T, n] of each of the content units' levels."""
        return list(self.said(self.reads(z)).float().split(self.config.content_levels, dim=-1))

    def name(self, z: Tensor, mask: Tensor, speaker: Tensor) -> dict[str, Tensor]:
        """Cross-entropy in nats of speakers [B], and the share that is right."""
        who = self.speaker(z, mask).float()
        return {"who": F.cross_entropy(who, speaker), "who_hit": (who.argmax(-1) == speaker).float().mean()}

    def read(self, z: Tensor, mask: Tensor, content: Tensor) -> dict[str, Tensor]:
        """Cross-entropy in nats of a level of packed content units [B, T], on average over levels and over frames where
        mask [B, T] is 1; and the share that is right."""
        known = mask > 0
        levels = radix.unpack(content[known], self.config.content_levels)
        pairs = [(x[known], levels[..., i]) for i, x in enumerate(self.words(z))]
        return {"words": torch.stack([F.cross_entropy(x, y) for x, y in pairs]).mean(),
                "words_hit": torch.stack([(x.argmax(-1) == y).float().mean() for x, y in pairs]).mean()}  # fmt: skip


class Turns(NamedTuple):
    """Rows of a batch: which sources are said in the voices of which prompts. Each in its own comes first."""

    source: Tensor  # int64 [N]
    prompt: Tensor


def crossed(batch: dict[str, Tensor]) -> Turns:
    """Every row in its own voice and, where it is speech, in that of the next row that is speech of another speaker."""
    who, own = batch["who"], torch.arange(len(batch["who"]), device=batch["who"].device)
    speech = own[batch["speech"]]
    a, b = speech, speech.roll(-1)
    apart = who[a] != who[b]
    return Turns(torch.cat((own, a[apart])), torch.cat((own, b[apart])))


def turned(prompt: Source, source: Source, turns: Turns) -> tuple[Source, Source]:
    """Prompts and sources [B, ...] -> those of `turns` [N, ...], F0 moved to the register of a prompt that is not the
    source's own."""
    def register(s: Source) -> Tensor:
        voiced = (s.periodicity > 0.5).float()
        return (torch.log2(s.f0.clamp_min(30.0)) * voiced).sum(1) / voiced.sum(1).clamp_min(1.0)

    higher = (register(prompt)[turns.prompt] - register(source)[turns.source]).clamp(-2.0, 2.0)
    higher = higher * (turns.source != turns.prompt)
    prompt, source = Source(*(x[turns.prompt] for x in prompt)), Source(*(x[turns.source] for x in source))
    return prompt, source._replace(f0=source.f0 * torch.exp2(higher)[:, None])
