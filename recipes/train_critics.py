"""Train the critics: on the codec's vectors of real speech, whose voice it is and which content units are said.

What they judge later are mixed vectors, which are smoother than real ones: so they see vectors of fewer codebooks,
smoothed in time and with noise, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.core.errors import ConfigError
from vivavoce.recipes.critics import CriticConfig, Critics
from vivavoce.recipes.tokens import Tokens
from vivavoce.recipes.train_lm import LMRecipe, Sequences, codec_of, summed
from vivavoce.recipes.trainer import TrainConfig, fit


@dataclass
class CriticRecipe:
    """`vivavoce train critics` reads this. What the model's shape shares with the tokens follows from them."""

    tokens: str
    codec: str  # folder of the codec behind the tokens
    train: TrainConfig
    model: CriticConfig = field(default_factory=CriticConfig)
    batch_size: int = 32
    crop_frames: int = 150
    boost: dict = field(default_factory=dict)
    noise: float = 0.3  # up to this share of the vectors' standard deviation
    valid_batches: int = 8


class CriticTask:
    """See recipes.trainer.Task."""

    def __init__(self, config: CriticRecipe) -> None:
        self.config, tokens = config, Tokens(config.tokens)
        codec = codec_of(tokens, config.codec)
        self.books = torch.stack([b.vectors for b in codec.quantiser.books])  # type: ignore[misc, union-attr]
        if not tokens.head["content_levels"]:
            raise ConfigError(f"tokens: {config.tokens} has classes for content; critics read product codes")
        drawn = LMRecipe(config.tokens, config.train, crop_frames=config.crop_frames, boost=config.boost)
        parts = ("train", "valid") if tokens.head["shards"].get("valid") else ("train",)
        self.parts = {name: Sequences(tokens.split(name), drawn) for name in parts}
        shape = {"code_dim": self.books.shape[-1], "content_levels": tokens.head["content_levels"],
                 "speakers": int(self.parts["train"].speaker.max()) + 1}  # fmt: skip
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = Critics(CriticConfig(**{**vars(config.model), **shape}))

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        return self._draw("train", rng)

    def _draw(self, part: str, rng: np.random.Generator) -> dict[str, Tensor]:
        c, seqs, rows = self.config, self.parts[part], []
        for _ in range(c.batch_size):
            used, at, _, _ = seqs.target(rng, 0)
            pad = (0, c.crop_frames - len(at))
            padded = np.pad(at, pad, "edge")
            rows.append((seqs.split.codes[padded].astype(np.int64), seqs.split.content[padded].astype(np.int64),
                         (np.arange(c.crop_frames) < len(at)).astype(np.float32), seqs.speaker[used[0]]))  # fmt: skip
        codes, content, mask, who = (torch.from_numpy(np.stack(x)) for x in zip(*rows))
        return {"codes": codes, "content": content, "mask": mask, "who": who}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        z = self._vectors(batch["codes"], worse=True)
        out = model(z, batch["mask"], batch["who"], batch["content"])
        return out["who"] + out["words"], out

    def _vectors(self, codes: Tensor, worse: bool) -> Tensor:
        books = self.books.to(codes.device)
        k = int(torch.randint(2, codes.shape[-1] + 1, ())) if worse else codes.shape[-1]
        z = summed(books[:k], codes[..., :k])
        if not worse:
            return z
        smooth = torch.rand(len(z), 1, 1, device=z.device) * 0.6
        z = (1 - smooth) * z + smooth * (z.roll(1, 1) + z.roll(-1, 1)) / 2
        return z + self.config.noise * torch.rand_like(smooth) * z.std((0, 1)) * torch.randn_like(z)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Content of valid speakers; speakers are those of the train split, so on other crops of it."""
        model, device, rows = self.model, next(self.model.parameters()).device, []
        assert isinstance(model, Critics)

        def drawn(part: str, i: int) -> tuple[Tensor, dict[str, Tensor]]:
            rng = np.random.Generator(np.random.Philox(key=4321, counter=[0, 0, 0, i]))
            b = {k: v.to(device) for k, v in self._draw(part, rng).items()}
            return self._vectors(b["codes"], worse=False), b

        for i in range(self.config.valid_batches):
            z, b = drawn("train", i)
            who = model.name(z, b["mask"], b["who"])
            z, b = drawn([*self.parts][-1], i)
            rows.append({"who_hit": who["who_hit"], **model.read(z, b["mask"], b["content"])})
        return {k: float(np.mean([float(r[k]) for r in rows])) for k in rows[0]}

    def export(self, folder: Path) -> None:
        assert isinstance(self.model, Critics)
        self.model.save_pretrained(folder)


def run(config: CriticRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(CriticTask(config), config.train)
