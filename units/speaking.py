"""Is it speech? Talking, laughing, crying and screaming differ in the content units they are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.core.layers import State


@dataclass
class SpeakingConfig:
    """`content_units` and `content_levels` as of the unit encoder that is listened to, and a hash of its weights."""

    units: str = ""
    content_units: int = 500
    content_levels: list[int] = field(default_factory=list)
    memory_frames: float = 25.0  # voiced ones, in which what was heard fades to 1 / e

    @property
    def digits(self) -> list[int]:
        """Values that each digit of a unit takes; a class is a unit of one digit."""
        return self.content_levels or [self.content_units]


class Speaking(PretrainedModule):
    """Log odds that what is voiced is speech and not another vocal sound: a table's entries for the digits of the
    content units, averaged over the last half second of voice. `recipes.speaking` fits it (logistic regression)."""

    model_type: ClassVar[str] = "vivavoce-speaking"
    Config: ClassVar[type] = SpeakingConfig

    def __init__(self, config: SpeakingConfig) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(sum(config.digits)))  # all values of the first digit, of the second, ...
        self.bias = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def forward(self, content: Tensor, periodicity: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Content units (int64) and periodicity [B, T] -> log odds [B, T], the present frame included; the prior's
        until the first voiced frame. Plain numbers, as in prosody.Register: it is one frame at a time."""
        rows = [(0.0, 0.0)] * len(content) if state is None else list(state)
        keep, bias, table = 1.0 - 1.0 / self.config.memory_frames, float(self.bias), self.table.tolist()
        out: list[list[float]] = []
        for b, (said, certain) in enumerate(zip(content.tolist(), periodicity.tolist())):
            (total, mass), own = rows[b], []
            for unit, p in zip(said, certain):
                if p > 0.5:
                    score = sum(table[i] for i in self.entries(unit))
                    total, mass = keep * total + score, keep * mass + 1.0
                own.append(bias + (total / mass if mass else 0.0))
            rows[b] = total, mass
            out.append(own)
        return torch.tensor(out).reshape(content.shape), tuple(rows)

    def entries(self, unit: int) -> list[int]:
        """A content unit's entries in the table, the last digit's first."""
        found, start = [], len(self.table)
        for n in reversed(self.config.digits):  # as core.radix unpacks
            start -= n
            unit, digit = divmod(unit, n)
            found.append(start + digit)
        return found
