"""Unit-to-unit translation: a source's pieces in, a target's pieces with durations out, as many as it takes.

    [source pieces | SEP, target pieces so far]  ->  next piece, or the end  ->  its frames

A decoder-only transformer of the language model's own blocks. The source part sees itself both ways, the
target part the source and its own past. Distances enter as an additive mask, across the two parts as well
(piece i of the target is near piece i of the source: people say things in order); sinusoids of the index tell
before from after. A summary of the target's prompt and, where it is given, an emotion's label are added to the
target part. For recordings at hand only: nothing here is causal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core import rng
from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.lm.transformer import Block, SwiGLU, slopes

NONE = -1  # padding of pieces


@dataclass
class TranslatorConfig:
    """Shape of the translator."""

    pieces: int = 2000  # of the unit BPE
    max_frames: int = 100  # longest duration of a piece that is told apart (2 s)
    emotions: list[str] = field(default_factory=list)  # labels that may be asked for
    dim: int = 192
    layers: int = 4
    heads: int = 4
    hidden: int = 512  # feed-forward width


class Pieces(NamedTuple):
    """Pieces and their durations in frames, [B, N] each; pieces are `NONE` where a row has ended."""

    pieces: Tensor
    frames: Tensor


@dataclass(frozen=True)
class Bounds:
    """How long a translation may get, and how it is drawn.

    Attributes:
        shortest, longest: frames of the translation over those of the source.
        repeats: copies of a cycle of pieces in a row that are a loop, where the source itself has fewer.
        cycle: longest cycle that is watched, in pieces.
    """

    shortest: float = 0.5
    longest: float = 2.0
    repeats: int = 3
    cycle: int = 8


class Translator(PretrainedModule):
    """Pieces of one speaker to pieces of another."""

    model_type: ClassVar[str] = "vivavoce-translator"
    Config: ClassVar[type] = TranslatorConfig

    slopes: Tensor

    def __init__(self, config: TranslatorConfig) -> None:
        super().__init__()
        self.config = c = config
        self.piece = nn.Embedding(c.pieces + 1, c.dim)  # the last: SEP at the input, the end at the output
        self.frames = nn.Embedding(c.max_frames + 1, c.dim)
        self.segment = nn.Embedding(3, c.dim)  # source, target, prompt
        self.emotion = nn.Embedding(len(c.emotions) + 1, c.dim)  # 0: not said
        self.summary = nn.Sequential(SwiGLU(c.dim, c.dim), nn.RMSNorm(c.dim), SwiGLU(c.dim, c.dim))
        self.blocks = nn.ModuleList(Block(c.dim, c.heads, c.hidden, c.layers) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.dim, eps=1e-5)
        self.to_piece = nn.Linear(c.dim, c.dim, bias=False)
        self.duration = nn.Sequential(nn.RMSNorm(c.dim), SwiGLU(c.dim, c.dim), nn.Linear(c.dim, c.max_frames))
        for table in (self.piece, self.frames, self.segment, self.emotion):
            nn.init.normal_(table.weight, std=0.3)
        self.register_buffer("slopes", slopes(c.heads), persistent=False)

    @property
    def end(self) -> int:
        """The symbol after the last piece, and before the first."""
        return self.config.pieces

    # ---- shared by training and decoding --------------------------------------------------------------

    def embed(self, x: Pieces, segment: int, first: int = 0) -> Tensor:
        """Pieces [B, N], the first at index `first` -> [B, N, dim]."""
        frames = x.frames.clamp(0, self.config.max_frames)
        y = self.piece(x.pieces.clamp_min(0)) + self.frames(frames) + self.segment.weight[segment]
        index = torch.arange(first, first + x.pieces.shape[1], device=y.device)
        return y + 0.3 * sinusoids(index, self.config.dim)

    def style(self, prompt: Pieces, emotion: Tensor) -> Tensor:
        """Prompt [B, P] and emotion indices [B] (0: not said) -> what is added to the target part, [B, 1, dim]."""
        there = (prompt.pieces >= 0)[..., None]
        x = self.summary(self.embed(prompt, 2)) * there
        return x.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp_min(1) + self.emotion(emotion)[:, None]

    def bias(self, queries: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """Indices of queries [T] and keys [S] within their parts, what is visible [B, T, S] -> additive mask
        [B, heads, T, S]."""
        away = (queries[:, None] - keys[None, :]).abs()
        return (-self.slopes[:, None, None] * away)[None].masked_fill(~seen[:, None], float("-inf"))

    def _next(self, h: Tensor) -> Tensor:
        """Hidden states -> logits of pieces and the end, [..., pieces + 1]."""
        return F.linear(self.to_piece(h), self.piece.weight).float()

    def _frames(self, h: Tensor, piece: Tensor) -> Tensor:
        """Hidden states and the piece that follows -> logits of 1 to max_frames frames."""
        return self.duration(h + self.piece(piece)).float()

    # ---- training -------------------------------------------------------------------------------------

    def forward(self, source: Pieces, target: Pieces, prompt: Pieces, emotion: Tensor,
                past: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Teacher-forced.

        Args:
            source [B, S], target [B, N], prompt [B, P], emotion [B].
            past: the target's pieces as the model is to remember them, where these are corrupted.

        Returns:
            cross-entropy in nats of pieces and the end [B, N + 1], and of durations [B, N]; zero in padding.
        """
        b, n_s = source.pieces.shape
        n = target.pieces.shape[1]
        there = target.pieces >= 0
        sep = target.pieces.new_full((b, 1), self.end)
        given = target.pieces if past is None else past
        shifted = Pieces(torch.cat((sep, given), 1), torch.cat((torch.zeros_like(sep), target.frames), 1))
        x = torch.cat((self.embed(source, 0), self.embed(shifted, 1) + self.style(prompt, emotion)), dim=1)
        index = torch.cat((torch.arange(n_s, device=x.device), torch.arange(n + 1, device=x.device)))
        part = torch.arange(n_s + n + 1, device=x.device) >= n_s
        causal = part[None] & part[:, None] & (index[None] <= index[:, None])
        seen = (~part[None] | causal)[None] & torch.cat((source.pieces >= 0, sep == self.end, there), 1)[:, None]
        seen = seen | torch.eye(len(part), dtype=torch.bool, device=x.device)  # padding sees itself, or softmax fails
        mask = self.bias(index, index, seen)
        for block in self.blocks:
            x = block(x, mask)
        h = self.norm(x[:, n_s:])
        wanted = torch.cat((target.pieces, torch.full_like(sep, NONE)), 1)
        last = there.sum(1, keepdim=True)
        wanted = wanted.scatter(1, last, self.end)
        pieces = F.cross_entropy(self._next(h).transpose(1, 2), wanted, ignore_index=NONE, reduction="none")
        frames = (target.frames.clamp(1, self.config.max_frames) - 1).masked_fill(~there, NONE)
        logits = self._frames(h[:, :-1], target.pieces.clamp_min(0))
        return pieces, F.cross_entropy(logits.transpose(1, 2), frames, ignore_index=NONE, reduction="none")

    # ---- decoding -------------------------------------------------------------------------------------

    @torch.no_grad()
    def translate(
        self, source: Pieces, prompt: Pieces, emotion: str | None = None, seed: int = 0, temperature: float = 0.0,
        bounds: Bounds | None = None,
    ) -> Pieces:  # fmt: skip
        """One source [1, S] -> pieces and frames [1, N], by a key/value cache.

        Noise is a function of (seed, step, class) alone; `temperature=0` is greedy. The end is neither taken
        before `bounds.shortest` nor later than `bounds.longest`, and a cycle of pieces that goes round more
        often than any in the source is left.

        Raises:
            ValueError: more than one row, an empty source, an emotion that the model does not know.
        """
        c, limits = self.config, bounds or Bounds()
        if source.pieces.shape[0] != 1 or not source.pieces.shape[1]:
            raise ValueError(f"one source at a time, not empty; got pieces of shape {tuple(source.pieces.shape)}")
        label = 0
        if emotion is not None:
            if emotion not in c.emotions:
                raise ValueError(f"emotion {emotion!r}: this translator knows {', '.join(c.emotions) or 'none'}")
            label = 1 + c.emotions.index(emotion)
        n_s, total = source.pieces.shape[1], int(source.frames.sum())
        most = max(1, min(math.ceil(limits.longest * total), math.ceil(limits.longest * n_s) + limits.cycle))
        repeats = max(limits.repeats, 1 + most_repeats(source.pieces[0].tolist(), limits.cycle))
        style = self.style(prompt, torch.tensor([label], device=source.pieces.device))
        step = self._prefix(source, most)
        done: list[int] = []
        frames: list[int] = []
        piece, lasts = self.end, 0
        classes = torch.arange(c.pieces + 1, device=style.device)
        while len(done) < most and sum(frames) < limits.longest * total:
            h = step(piece, lasts, style)
            logits = self._next(h)
            if sum(frames) < limits.shortest * total or not done:
                logits[self.end] = float("-inf")
            logits[loops(done, repeats, limits.cycle)] = float("-inf")
            now = torch.tensor(len(done), device=style.device)
            if temperature > 0:
                logits = logits + temperature * rng.gumbel(seed, now, torch.zeros_like(now), classes)
            piece = int(logits.argmax())
            if piece == self.end:
                break
            lengths = self._frames(h, torch.tensor(piece, device=style.device))
            if temperature > 0:
                lengths = lengths + temperature * rng.gumbel(seed, now, torch.ones_like(now), classes[: c.max_frames])
            lasts = min(1 + int(lengths.argmax()), math.ceil(limits.longest * total) - sum(frames))
            done.append(piece)
            frames.append(lasts)
        device = source.pieces.device
        return Pieces(torch.tensor([done], device=device), torch.tensor([frames], device=device))

    def _prefix(self, source: Pieces, most: int) -> Callable[[int, int, Tensor], Tensor]:
        """Read the source; returns a function that takes the last piece, its frames and the style, and gives the
        hidden state [dim] that the next is read from."""
        c, n_s = self.config, source.pieces.shape[1]
        x = self.embed(source, 0)
        size = n_s + most + 1
        shape = (c.layers, 1, c.heads, size, c.dim // c.heads)
        keys, values = x.new_zeros(shape), x.new_zeros(shape)
        slot = torch.arange(size, device=x.device)
        index = torch.where(slot < n_s, slot, slot - n_s)
        mask = self.bias(slot[:n_s], index, (slot < n_s).expand(1, n_s, size))
        for i, block in enumerate(self.blocks):
            x = block(x, mask, (keys[i], values[i]), slot[:n_s])
        taken = 0

        def step(piece: int, frames: int, style: Tensor) -> Tensor:
            nonlocal taken
            one = Pieces(*(torch.tensor([[v]], device=style.device) for v in (piece, frames)))
            x = self.embed(one, 1, taken) + style
            mask = self.bias(index[n_s + taken, None], index, (slot <= n_s + taken)[None, None])
            for i, block in enumerate(self.blocks):
                x = block(x, mask, (keys[i], values[i]), slot[n_s + taken, None])
            taken += 1
            return self.norm(x)[0, 0]

        return step


def sinusoids(index: Tensor, dim: int) -> Tensor:
    """Indices [N] -> sines and cosines of them [N, dim], periods 6 to 6,000 (Vaswani et al. 2017)."""
    rate = torch.exp(-math.log(1000.0) * torch.arange(dim // 2, device=index.device) / max(dim // 2 - 1, 1))
    angle = index[:, None] * rate
    return torch.cat((angle.sin(), angle.cos(), angle.new_zeros(len(index), dim % 2)), dim=1)


def loops(pieces: list[int], repeats: int, cycle: int) -> list[int]:
    """The pieces that would, coming next, complete `repeats` copies in a row of a cycle of up to `cycle`."""
    banned = set()
    for c in range(1, cycle + 1):
        tail = pieces[len(pieces) - (c * repeats - 1) :] if len(pieces) >= c * repeats - 1 else []
        if tail and all(a == b for a, b in zip(tail, tail[c:])):
            banned.add(pieces[-c])
    return sorted(banned)


def most_repeats(pieces: list[int], cycle: int) -> int:
    """How often in a row any cycle of up to `cycle` pieces occurs: 1 where nothing is repeated at once."""
    best = 1
    for c in range(1, cycle + 1):
        run = 0
        for a, b in zip(pieces, pieces[c:]):
            run = run + 1 if a == b else 0
            best = max(best, 1 + run // c)
    return best
