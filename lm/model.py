"""The translator: one position a frame, voice prompt always visible, a ring of recent frames.

    frame t:  source units at t + delay (through a short causal conv stem) + codes of frame t - 1 + voice summary
              -> temporal transformer over [prompt | recent frames]
              -> residual depth network: codebook k is read from the hidden state plus the embedded sum of
                 the frame's codes so far, which in a residual VQ says all that matters of them

Or, `autoregressive=False`: codes of frame t - 1 and of the frame's other codebooks are not shown, each code's
probabilities follow from the source and the prompt alone, and these are given out instead of a draw (the codec mixes
its vectors by them). It cannot go astray on what it said itself; docs/decisions.md has what that is worth.

Training needs no parallel data: prompt and target are different clips of one speaker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vivavoce.core import radix, rng
from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.core.layers import ConvNeXt
from vivavoce.core.traced import traced
from vivavoce.lm.transformer import Block, SwiGLU, slopes

PLAUSIBLE = 6.0  # nats below the likeliest code within which guidance may choose
STEADY = 0.5  # share of guided weights' way from the crowd that is its running mean: likeness is slow, words are fast
KEPT = 0.5 ** (1 / 25)  # of that mean, a frame: half of it in half a second


@dataclass
class LMConfig:
    """Shape of the language model; the defaults are the embedded model's."""

    content_units: int = 500
    content_levels: list[int] = field(default_factory=list)  # of units that pack several (core.radix)
    expression_levels: list[int] = field(default_factory=lambda: [7, 7, 7])
    n_codebooks: int = 4  # of the codec's, coarse to fine
    codebook_size: int = 1024
    dim: int = 256
    layers: int = 6
    heads: int = 4
    hidden: int = 768  # feed-forward width
    depth_hidden: int = 512  # width of the depth network, two layers a codebook
    stem_layers: int = 2
    context: int = 100  # recent frames kept in the ring
    max_delay: int = 2  # frames of extra look-ahead seen in training
    autoregressive: bool = True  # whether a code is drawn given the codes before it


class Source(NamedTuple):
    """Source units of T frames: content [B, T], expression [B, T, channels] (integers), and prosody:
    F0 in Hz in the *target's* register, periodicity (0 to 1), level (dB), each [B, T]."""

    content: Tensor
    expression: Tensor
    f0: Tensor
    periodicity: Tensor
    level: Tensor


class LMState(NamedTuple):
    """A stream's state. `keys` and `values` are updated in place: `clone()` before keeping a snapshot."""

    keys: Tensor  # [layers, B, heads, prompt + ring, head_dim]; the ring has room for the context, and for a step
    values: Tensor
    prompt: Tensor  # int64 [], frames of it
    frame: Tensor  # int64 [], frames generated so far
    codes: Tensor  # int64 [B, K], of the last frame; -1 before the first, and where they play no part
    voice: Tensor  # [B, 1, dim], summary of the prompt
    stem: tuple  # conv states
    away: Tensor  # [B / 2, K, codebook_size], running mean of the weights' way from the crowd's; empty without guidance

    def clone(self) -> LMState:
        """A deep copy: a snapshot, or the fork of a stream."""
        keys, values, prompt, frame, codes, voice, stem, away = self
        return LMState(keys.clone(), values.clone(), prompt, frame.clone(), codes.clone(), voice.clone(),
                       tuple(s.clone() for s in stem), away.clone())  # fmt: skip


class VoiceLM(PretrainedModule):
    """Decoder-only unit-to-code transformer."""

    model_type: ClassVar[str] = "vivavoce-lm"
    Config: ClassVar[type] = LMConfig

    expression_half: Tensor
    slopes: Tensor

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = c = config
        self.content = UnitEmbedding(c.content_levels or [c.content_units], c.dim)
        self.expression = nn.Linear(len(c.expression_levels), c.dim)
        self.prosody = nn.Linear(3, c.dim)
        self.delay = nn.Embedding(c.max_delay + 1, c.dim)
        self.segment = nn.Embedding(3, c.dim)  # prompt, live, first live frame (no codes before it)
        self.codes = nn.ModuleList(nn.Embedding(c.codebook_size, c.dim) for _ in range(c.n_codebooks))
        self.stem = nn.ModuleList(ConvNeXt(c.dim, 5, 2) for _ in range(c.stem_layers))
        self.summary = nn.Sequential(SwiGLU(c.dim, c.dim), nn.RMSNorm(c.dim), SwiGLU(c.dim, c.dim))
        self.blocks = nn.ModuleList(Block(c.dim, c.heads, c.hidden, c.layers) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.dim, eps=1e-5)
        self.depth = nn.ModuleList(DepthHead(c.dim, c.depth_hidden, c.codebook_size) for _ in range(c.n_codebooks))
        for table in (self.content, self.delay, self.segment, *self.codes):
            nn.init.normal_(table.weight, std=0.3)
        half = torch.tensor([n // 2 for n in c.expression_levels], dtype=torch.float32)
        self.register_buffer("expression_half", half, persistent=False)
        self.register_buffer("slopes", slopes(c.heads), persistent=False)

    @torch.no_grad()
    def start_from(self, codebooks: list[Tensor]) -> None:
        """Initialise code embeddings and output weights from the codec's vectors, [codebook_size, d] a codebook,
        through random projections, so that codes that sound alike start out alike."""
        for table, head, vectors in zip(self.codes, self.depth, codebooks):
            v = (vectors - vectors.mean(0)) / vectors.std()
            project = torch.randn(2, v.shape[1], self.config.dim) / v.shape[1] ** 0.5
            table.weight.copy_(0.3 * v @ project[0])  # type: ignore[operator]
            head.out.weight.copy_(v @ project[1] / self.config.dim**0.5 / 4)  # type: ignore[union-attr, operator]

    # ---- shared by training and streaming -----------------------------------------------------------

    def embed_source(self, s: Source, state: tuple | None = None) -> tuple[Tensor, tuple]:
        """Source units -> [B, T, dim], through the conv stem."""
        octaves = torch.log2(s.f0.clamp(30.0, 2000.0) / 200.0) * s.periodicity
        prosody = torch.stack((octaves, s.periodicity, (s.level + 40.0) / 20.0), dim=-1)
        x = self.content(s.content) + self.prosody(prosody)
        x = x + self.expression(s.expression / self.expression_half - 1.0)
        states = []
        for i, block in enumerate(self.stem):
            x, st = block(x, None if state is None else state[i])
            states.append(st)
        return x, tuple(states)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Codes [B, T, k] -> sum of their embeddings [B, T, dim]; -1 embeds to zero."""
        total = torch.zeros((), device=codes.device)
        for k in range(codes.shape[-1]):
            i = codes[..., k]
            total = total + self.codes[k](i.clamp_min(0)) * (i >= 0)[..., None]
        return total

    def embed_prompt(self, source: Source, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt units and codes -> positions [B, P, dim] and the voice summary [B, 1, dim].

        A prompt position shows the units and the codes of the *same* frame: a dictionary of how this
        voice says what.
        """
        units, _ = self.embed_source(source)
        x = units + self.embed_codes(codes)
        return x + self.segment.weight[0], self.summary(x).mean(1, keepdim=True)

    def _bias(self, age: Tensor, seen: Tensor) -> Tensor:
        """Ages in frames [T, S] and what is visible -> additive mask [1, heads, T, S]."""
        bias = -self.slopes[:, None, None] * age
        return bias.masked_fill(~seen, float("-inf"))[None]

    # ---- training -----------------------------------------------------------------------------------

    def forward(self, prompt: Source, prompt_codes: Tensor, source: Source, past: Tensor, target: Tensor,
                delay: int = 0, books: Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Teacher-forced log-likelihood.

        Args:
            prompt, prompt_codes: P frames of the target voice, codes [B, P, K].
            source: T frames of source units, already advanced by `delay` frames.
            past: codes of the frame before each, [B, T, K], possibly corrupted; -1 where there is none. Only an
                autoregressive model looks at them.
            target: codes to predict [B, T, K].
            books: the codec's vectors [K, codebook_size, d].

        Returns:
            cross-entropy in nats [B, T, K]; and, with `books`, the expected sum of vectors [B, T, d].
        """
        h = self._hidden(prompt, prompt_codes, source, past, delay)
        losses, known, mean = [], None, None
        for k, head in enumerate(self.depth):
            logits = head(h, known).float()
            losses.append(nn.functional.cross_entropy(logits.transpose(1, 2), target[..., k], reduction="none"))
            if books is not None:
                expected = logits.softmax(-1) @ books[k]
                mean = expected if mean is None else mean + expected
            if self.config.autoregressive:
                e = self.codes[k](target[..., k])
                known = e if known is None else known + e
        return torch.stack(losses, dim=-1), mean

    def _hidden(self, prompt: Source, prompt_codes: Tensor, source: Source, past: Tensor, delay: int) -> Tensor:
        """`forward` up to the heads: [B, T, dim]."""
        p, voice = self.embed_prompt(prompt, prompt_codes)
        s, _ = self.embed_source(source)
        x = s + voice + self.delay.weight[delay]
        if self.config.autoregressive:
            first = (past < 0).all(-1, keepdim=True)
            x = x + self.embed_codes(past) + torch.where(first, self.segment.weight[2], self.segment.weight[1])
        else:
            x = x + self.segment.weight[1]
        n_p, n = p.shape[1], p.shape[1] + x.shape[1]
        i = torch.arange(n, device=x.device)
        age = i[:, None] - i[None, :]
        across = (i[:, None] >= n_p) & (i[None, :] < n_p)  # live frames see the prompt at no distance
        seen = across | ((age >= 0) & ((age < self.config.context) | (i[:, None] < n_p)))
        mask = self._bias(age.masked_fill(across, 0), seen)
        h = torch.cat((p, x), dim=1)
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h[:, n_p:])

    # ---- streaming ----------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, prompt: Source, codes: Tensor, crowd: tuple[Source, Tensor] | None = None,
              together: int = 1) -> LMState:  # fmt: skip
        """Read a voice prompt (P frames, codes [B, P, K]) and open a stream.

        Args:
            together: frames, at most, that `generate` will compute at once; one of an autoregressive model.
            crowd: a prompt of many voices, with its codes, that guidance leads away from. The state then
                holds 2 B rows: the voice's and, after them, the crowd's. Both are cut to the shorter prompt.
        """
        c = self.config
        if crowd is not None:
            p = min(codes.shape[1], crowd[1].shape[1])
            prompt = Source(*(torch.cat((a[:, :p], b[:, :p])) for a, b in zip(prompt, crowd[0])))
            k = c.n_codebooks
            codes = torch.cat((codes[:, :p, :k], crowd[1][:, :p, :k]))
        x, voice = self.embed_prompt(prompt, codes[..., : c.n_codebooks])
        b, p, _ = x.shape
        n_slots = p + c.context + together - 1
        shape = (c.layers, b, c.heads, n_slots, c.dim // c.heads)
        keys, values = x.new_zeros(shape), x.new_zeros(shape)
        i, j = torch.arange(p, device=x.device)[:, None], torch.arange(n_slots, device=x.device)[None]
        mask = self._bias(i - j, i >= j)
        for n, block in enumerate(self.blocks):
            x = block(x, mask, (keys[n], values[n]), i[:, 0])
        none = torch.full((b, c.n_codebooks), -1, dtype=torch.int64, device=x.device)
        _, stem = self.embed_source(Source(*(t[:, :0] for t in prompt)))
        away = x.new_zeros(0 if crowd is None or c.autoregressive else b // 2, c.n_codebooks, c.codebook_size)
        length, frame = (torch.tensor(n, device=x.device) for n in (p, 0))
        return LMState(keys, values, length, frame, none, voice, stem, away)

    @torch.no_grad()
    def generate(
        self, source: Source, state: LMState, seed: int = 0, temperature: float = 1.0, delay: int = 0,
        guidance: float = 0.0,
    ) -> tuple[Tensor, LMState]:  # fmt: skip
        """Source units of T frames -> codes [B, T, K], state; of a model that is not autoregressive, weights of all
        codes [B, T, K, codebook_size], which sum to one. As many frames as the state has room for are computed at once.

        Sampling noise is a function of (seed, frame, codebook, code) alone; `temperature=0` is greedy. Weights
        are not sampled. With a state that was started against a crowd, `guidance` g moves the log-probabilities
        (weights: the probabilities) by g times their difference from the crowd's (classifier-free guidance, Ho &
        Salimans 2022, on the prompt); for weights, half of that difference is its running mean (`STEADY`, `KEPT`).
        """
        c, b, out = self.config, source.content.shape[0], []
        room = 1 if c.autoregressive else state.keys.shape[3] - int(state.prompt) - c.context + 1
        for t in range(0, source.content.shape[1], room):
            frames = Source(*(x[:, t : t + room] for x in source))
            codes, state = self._step(frames, state, seed, temperature, delay, guidance)
            out.append(codes)
        empty = state.codes.new_zeros(b, 0, c.n_codebooks)
        if not c.autoregressive:
            empty = source.f0.new_zeros(b, 0, c.n_codebooks, c.codebook_size)
        return torch.cat(out, dim=1) if out else empty, state

    def _step(
        self, s: Source, state: LMState, seed: int, temperature: float, delay: int, guidance: float
    ) -> tuple[Tensor, LMState]:
        rows, frames = s.content.shape
        guided = state.codes.shape[0] == 2 * rows  # the second half of the batch follows the crowd
        drawn = temperature > 0 and self.config.autoregressive
        noise = (torch.tensor(seed), torch.tensor(temperature)) if drawn else ()
        more = (torch.tensor(guidance),) if guided else ()
        key = rows, frames, guided, drawn, self.config.context
        said, frame, stem, away = traced(self, self._frames, key, s, state, noise, torch.tensor(delay), more)
        codes = said[:, -1] if self.config.autoregressive else state.codes
        return said[:rows], state._replace(frame=frame, codes=codes, stem=stem, away=away)

    def _frames(self, s: tuple, state: tuple, noise: tuple, delay: Tensor, guidance: tuple) -> tuple:
        """T frames at once. Keys and values are written in place -> what is said; frame, stem and away of the state."""
        c, s, state = self.config, Source(*s), LMState(*state)
        n, p, (rows, t) = state.frame, state.prompt, s.content.shape
        if guidance:
            s = Source(*(torch.cat((x, x)) for x in s))
        x, stem = self.embed_source(s, state.stem)
        x = x + state.voice + self.delay(delay)
        if c.autoregressive:
            x = x + self.embed_codes(state.codes[:, None]) + self.segment((n == 0) + 1)
        else:
            x = x + self.segment.weight[1]
        now = (n + torch.arange(t, device=x.device))[:, None]
        slot = torch.arange(state.keys.shape[3], device=x.device) - p
        ring = state.keys.shape[3] - p
        age = torch.where(slot < 0, 0, (now - slot) % ring)  # the prompt is at no distance
        mask, at = self._bias(age, (age <= now) & (age < c.context)), (p + now % ring)[:, 0]
        for i, block in enumerate(self.blocks):
            x = block(x, mask, (state.keys[i], state.values[i]), at)
        h = self.norm(x)
        if c.autoregressive:
            return self._drawn(h, rows, n, noise, guidance)[:, None], n + 1, stem, state.away
        said, away = self._weighed(h, rows, n, state.away, guidance)
        return said, n + t, stem, away

    def _drawn(self, h: Tensor, rows: int, n: Tensor, noise: tuple, guidance: tuple) -> Tensor:
        """Hidden state of a frame [B, 1, dim] -> codes [B, K], coarse to fine, each given those before it."""
        c = self.config
        codes: list[Tensor] = []
        known = None
        if noise:
            book = torch.arange(c.n_codebooks, device=h.device)[:, None]
            seed, temperature = noise
            rolled = temperature * rng.gumbel(seed, n, book, torch.arange(c.codebook_size, device=h.device))
        for k, head in enumerate(self.depth):
            logits = head(h, known)[:, 0].float()
            if guidance:
                logits = torch.log_softmax(logits, dim=-1)
                logits = _guide(logits[:rows], logits[rows:], guidance[0])
            if noise:
                logits = logits + rolled[k]
            code = logits.argmax(-1)
            code = torch.cat((code, code)) if guidance else code
            codes.append(code)
            e = self.codes[k](code)[:, None]
            known = e if known is None else known + e
        return torch.stack(codes, dim=-1)

    def _weighed(self, h: Tensor, rows: int, n: Tensor, away: Tensor, guidance: tuple) -> tuple[Tensor, Tensor]:
        """Hidden states from frame n on [B, T, dim] -> weights of all codes [rows, T, K, codebook_size], the state's
        `away`."""
        p = torch.stack([head(h, None).float().softmax(-1) for head in self.depth], dim=2)
        if not guidance:
            return p, away
        now, steady = p[:rows] - p[rows:], []
        for i in range(p.shape[1]):
            away = now[:, i] + ((n + i) / (n + i + 1)).clamp_max(KEPT) * (away - now[:, i])
            steady.append(away)
        return p[:rows] + guidance[0] * (now + STEADY * (torch.stack(steady, dim=1) - now)), away


def _guide(voice: Tensor, crowd: Tensor, guidance: Tensor) -> Tensor:
    """Log-probabilities [B, V] led away from the crowd's, among codes that the voice finds likely at all."""
    likely = voice > voice.amax(-1, keepdim=True) - PLAUSIBLE
    return (voice + guidance * (voice - crowd)).masked_fill(~likely, float("-inf"))


class UnitEmbedding(nn.Embedding):
    """Packed units [...] -> [..., dim]: the sum of an embedding for each level that they pack.

    Or levels as floats [..., n], whole numbers: their gradients are the slopes between the neighbours' embeddings.
    """

    base: Tensor

    def __init__(self, levels: list[int], dim: int) -> None:
        super().__init__(sum(levels), dim)
        self.levels = levels
        self.register_buffer("base", torch.tensor([0, *levels[:-1]]).cumsum(0), persistent=False)

    def forward(self, units: Tensor) -> Tensor:
        if units.is_floating_point():
            return self._between(units)
        if len(self.levels) == 1:
            return super().forward(units)
        return super().forward(radix.unpack(units, self.levels) + self.base).sum(-2)

    def _between(self, levels: Tensor) -> Tensor:
        at = levels.detach().round().long()
        low, high = (at - 1).clamp_min(0), torch.minimum(at + 1, torch.tensor(self.levels, device=at.device) - 1)
        own, below, above = (super(UnitEmbedding, self).forward(i + self.base) for i in (at, low, high))
        slope = (above - below) / (high - low)[..., None]
        return (own + (levels - at)[..., None] * slope).sum(-2)


class DepthHead(nn.Module):
    """Logits of one codebook from the frame's hidden state and the sum of its codes so far."""

    def __init__(self, dim: int, hidden: int, codebook_size: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(dim, eps=1e-5) for _ in range(3))
        self.mlp1, self.mlp2 = SwiGLU(dim, hidden), SwiGLU(dim, hidden)
        self.out = nn.Linear(dim, codebook_size)
        nn.init.normal_(self.out.weight, std=1.0 / math.sqrt(dim) / 4)

    def forward(self, h: Tensor, known: Tensor | None) -> Tensor:
        """h [B, T, dim], known [B, T, dim] or None -> logits [B, T, codebook_size]."""
        x = h if known is None else h + known
        x = x + self.mlp1(self.norm1(x))
        x = x + self.mlp2(self.norm2(x))
        return self.out(self.norm3(x))
