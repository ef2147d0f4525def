"""Train the language model: from source units, prompted with another clip of the speaker, to codec codes.

No parallel data is needed. Prompt: clips of the same speaker, in another emotion where there is one, so
that emotion must come from the source. Source: units of a speaker-perturbed view of the clip. Target: the
clean clip's codes. Units and past codes are corrupted so that errors do not snowball.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.codec import Codec, VoiceCodec, load_codec
from vivavoce.core import radix
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.core.resample import resample
from vivavoce.lm import LMConfig, Source, VoiceLM
from vivavoce.recipes.corpus import RATE
from vivavoce.recipes.critics import Critics, Turns, crossed, turned
from vivavoce.recipes.data import weights
from vivavoce.recipes.tokens import Tokens, TokenSplit
from vivavoce.recipes.trainer import TrainConfig, fit, take_over
from vivavoce.units import prosody


@dataclass
class LMRecipe:
    """`vivavoce train lm` reads this."""

    tokens: str
    train: TrainConfig
    model: LMConfig = field(default_factory=LMConfig)
    start_from: str | None = None  # folder of a trained model to go on from; parts of another shape start anew
    codec: str | None = None  # folder of the codec behind the tokens: validation listens through it
    batch_size: int = 16
    crop_frames: int = 150
    prompt_frames: list[int] = field(default_factory=lambda: [100, 150])
    boost: dict = field(default_factory=dict)
    past_corruption: float = 0.4  # up to this share of a sequence's past codes is hidden or random
    unit_corruption: float = 0.05
    unit_jitter: float = 0.3  # up to this share of a sequence's packed levels is moved by one
    likelihood: float = 1.0  # weight of the codes' cross-entropy
    regression: float = 0.0  # weight of the squared error of the expected vectors, as a share of their variance
    spectral: float = 0.0  # weight of the distance, in nepers, of the spectra that the codec makes of these vectors
    pitch_jitter: float = 0.3  # semitones, a sequence
    codebook_weights: list[float] = field(default_factory=lambda: [1.0, 0.8, 0.6, 0.5])
    critics: str | None = None  # folder of critics to ask of conversions within a batch (recipes.critics)
    likeness: float = 0.3  # weight of the target speaker's cross-entropy, by the critics
    words: float = 1.0  # weight of the content units'
    valid_batches: int = 12
    listen_pairs: int = 16


class Sequences:
    """Draws (prompt, source, target) from one split of the tokens.

    Raises:
        CorpusError: no speaker has enough material for a prompt beside the target.
    """

    def __init__(self, split: TokenSplit, config: LMRecipe) -> None:
        self.split, self.config = split, config
        speaker, _ = split.labels("speaker")
        alone = speaker < 0  # who is unknown may prompt for nobody else
        speaker[alone] = speaker.max(initial=-1) + 1 + np.arange(alone.sum())
        self.speaker, self.emotion = speaker, split.labels("emotion")[0]
        kind, kinds = split.labels("vocalisation")
        self.speech = kind == kinds.index("none") if "none" in kinds else np.full(len(kind), not kinds)
        self.by_speaker = np.argsort(speaker, kind="stable")
        self.first_of = np.concatenate(([0], np.cumsum(np.bincount(speaker))))
        usable = (np.bincount(speaker)[speaker] > 1) | (split.frames > config.crop_frames + 100)
        if not usable.any():
            raise CorpusError("no speaker with two clips, or a clip of more than 4 s: nothing to prompt with")
        w = weights(split.frames, config.boost, split.labels) * usable
        self.cumulative = np.cumsum(w / w.sum())

    def peers(self, clip: int) -> np.ndarray:
        """All clips of this clip's speaker, itself among them."""
        who = self.speaker[clip]
        return self.by_speaker[self.first_of[who] : self.first_of[who + 1]]

    def target(self, rng: np.random.Generator, delay: int) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
        """`crop_frames` frames of one speaker: a crop of a drawn clip, filled up from the speaker's other clips.

        At least half of a speaker's clips (or of a lone clip) is left for the prompt.

        Returns:
            the clips used; frame indices of the codes [T]; of the units, `delay` unit frames ahead [T]; and
            where a clip begins [T].
        """
        first = min(int(np.searchsorted(self.cumulative, rng.random())), len(self.speaker) - 1)
        others = [j for j in rng.permutation(self.peers(first)) if j != first]
        queue = [first, *others[: len(others) // 2]]
        used, codes, units, begins, left = [], [], [], [], self.config.crop_frames
        for clip in queue:
            start, end = int(self.split.offsets[clip]), int(self.split.offsets[clip + 1])
            n = min(end - start, left)
            at = start + int(rng.integers(0, end - start - n + 1)) + np.arange(n)
            used.append(int(clip))
            codes.append(at)
            units.append(np.minimum(start + self.split.grid.ahead(at - start, delay), end - 1))
            begins.append(np.arange(n) == 0)
            left -= n
            if left <= 0:
                break
        return used, np.concatenate(codes), np.concatenate(units), np.concatenate(begins)

    def prompt(self, rng: np.random.Generator, used: list[int], taken: np.ndarray, frames: int) -> np.ndarray:
        """Indices [frames] of prompt frames: the speaker's unused clips, other emotions first half the time."""
        offsets, clip = self.split.offsets, used[0]
        others = [j for j in self.peers(clip) if j not in used]
        if not others:  # one long clip: what lies outside the crop
            index = np.setdiff1d(np.arange(offsets[clip], offsets[clip + 1]), taken)
            return np.resize(np.roll(index, -int(rng.integers(0, len(index)))), frames)
        order = rng.permutation(others)
        if rng.random() < 0.5:
            order = order[np.argsort(self.emotion[order] == self.emotion[clip], kind="stable")]
        parts, have = [], 0
        for j in order:
            length = int(offsets[j + 1] - offsets[j])
            first = int(rng.integers(0, max(1, length - frames + 1)))
            parts.append(np.arange(offsets[j] + first, offsets[j] + min(length, first + frames)))
            have += len(parts[-1])
            if have >= frames:
                break
        return np.resize(np.concatenate(parts), frames)

    def arrays(self, index: np.ndarray, view: int = 0) -> dict[str, np.ndarray]:
        """Token columns at frame indices; content and expression of a perturbed view for view > 0."""
        s = self.split
        content, expression = (s.content, s.expression) if view == 0 else s.views[view - 1]
        return {"content": content[index].astype(np.int64), "expression": expression[index].astype(np.int64),
                "prosody": s.prosody[index].astype(np.int64), "codes": s.codes[index].astype(np.int64)}  # fmt: skip


def jitter(units: np.ndarray, levels: list[int], share: float, rng: np.random.Generator) -> np.ndarray:
    """Packed units [T] with `share` of their levels moved up or down by one, at chance; others stay as they are."""
    if not levels or not share:
        return units
    digits = radix.unpack(torch.from_numpy(units), levels)
    step = rng.choice([-1, 1], digits.shape) * (rng.random(digits.shape) < share)
    moved = (digits + torch.from_numpy(step)).clamp_min(0).minimum(torch.tensor(levels) - 1)
    return radix.pack(moved, levels).numpy()


def summed(books: Tensor, codes: Tensor) -> Tensor:
    """Vectors [K, size, d] and codes [..., K] -> their sums [..., d]."""
    return sum(books[k][codes[..., k]] for k in range(len(books)))  # type: ignore[return-value]


def as_source(arrays: dict[str, Tensor], level_offset: Tensor | float = 0.0, octaves: Tensor | float = 0.0) -> Source:
    """Token columns with a batch dimension -> Source, with level (dB) and pitch (octaves) shifted."""
    f0, periodicity, level = prosody.dequantise(arrays["prosody"])
    f0 = f0 * torch.exp2(torch.as_tensor(octaves, device=f0.device))
    return Source(arrays["content"], arrays["expression"], f0, periodicity, level + level_offset)


class LMTask:
    """See recipes.trainer.Task."""

    # in which model and tokens are to agree
    of_tokens: ClassVar[tuple[str, ...]] = ("content_units", "content_levels", "expression_levels", "codebook_size")

    def __init__(self, config: LMRecipe) -> None:
        self.config = config
        tokens = Tokens(config.tokens)
        for key in self.of_tokens:
            want, found = getattr(config.model, key), tokens.head[key]
            if found != want:
                raise ConfigError(f"model.{key} is {want}, but {config.tokens} was made with {found}")
        if config.model.n_codebooks > tokens.head["codebooks"]:
            raise ConfigError(f"model.n_codebooks: {config.tokens} holds {tokens.head['codebooks']} codebooks")
        if len(config.codebook_weights) < config.model.n_codebooks:
            raise ConfigError(f"codebook_weights: give {config.model.n_codebooks}, one a codebook")
        self.codec = codec_of(tokens, config.codec) if config.codec else None
        self.train = Sequences(tokens.split("train"), config)
        self.views = len(self.train.split.views)
        self.held = "valid" if tokens.head["shards"].get("valid") else "train"
        self.valid = Sequences(tokens.split(self.held), config)
        torch.manual_seed(config.train.seed)
        self.model: nn.Module = VoiceLM(config.model)
        if config.regression and self.codec is None:
            raise ConfigError("regression: needs codec=, whose vectors are to be met")
        if self.codec is not None:  # codes that sound alike start out alike
            books = self.codec.quantiser.books[: config.model.n_codebooks]
            self.model.start_from([b.vectors for b in books])  # type: ignore[operator,misc]
        if config.start_from:
            take_over(self.model, VoiceLM.from_pretrained(config.start_from), config.start_from)

        if config.regression:
            self.books, self.spread = self._vectors()
        if config.spectral:
            if not config.regression or not isinstance(self.codec, Codec):
                raise ConfigError("spectral: needs regression= and, in codec=, a codec of ours, which makes spectra")
            self.codec.requires_grad_(False)
        self.critics: Critics | None = None
        if config.critics:
            self._hire(config.critics)

    def _hire(self, critics: str) -> None:
        c = self.config
        if not c.regression:
            raise ConfigError("critics: need regression=, whose vectors they hear")
        self.critics, speakers = Critics.from_pretrained(critics), int(self.train.speaker.max()) + 1
        if self.critics.config.speakers != speakers:
            raise ConfigError(f"critics: {critics} knows {self.critics.config.speakers} speakers, {c.tokens} has "
                              f"{speakers}; train them on the same tokens")  # fmt: skip
        self.critics.requires_grad_(False)  # in training mode all the same: dropout makes them harder to please

    def _vectors(self) -> tuple[Tensor, float]:
        """The codec's vectors [K, codebook_size, d], and the variance of the sums that occur, over all d."""
        assert self.codec is not None
        books = torch.stack([b.vectors for b in self.codec.quantiser.books])  # type: ignore[misc]
        some = self.train.split.codes[np.linspace(0, len(self.train.split.codes) - 1, 10_000).astype(np.int64)]
        return books, float(summed(books, torch.from_numpy(some.astype(np.int64))).var(0).sum())

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        return self._draw(self.train, rng, training=True)

    def _draw(self, sequences: Sequences, rng: np.random.Generator, training: bool) -> dict[str, Tensor]:
        c = self.config
        delay = int(rng.integers(0, c.model.max_delay + 1)) if training else 0
        n_prompt = int(rng.choice(c.prompt_frames)) if training else max(c.prompt_frames)
        rows: list[dict[str, np.ndarray]] = []
        for _ in range(c.batch_size):
            used, here, there, begins = sequences.target(rng, delay)
            n, pad = len(here), (0, c.crop_frames - len(here))
            # never the clip's own units in training: what they leak of the speaker would be copied at run time
            view = int(rng.integers(1, self.views + 1)) if training and self.views else 0
            ahead = sequences.arrays(np.pad(there, pad, "edge"), view)
            own = sequences.arrays(np.pad(here, pad, "edge"))
            fine, codes = own["codes"], own["codes"][:, : c.model.n_codebooks]
            prompt_at = sequences.prompt(rng, used, here, n_prompt)
            prompt = sequences.arrays(prompt_at)
            past = np.where(np.pad(begins, pad)[:, None], -1, np.concatenate((codes[:1], codes[:-1])))
            content, t = ahead["content"], np.arange(c.crop_frames)
            if training:
                rate = rng.random() * c.past_corruption
                hit = rng.random(len(t)) < rate
                noise = rng.integers(0, c.model.codebook_size, past.shape)
                past = np.where(hit[:, None], np.where(rng.random((len(t), 1)) < 0.5, -1, noise), past)
                past[np.pad(begins, pad)] = -1
                swap = rng.random(len(t)) < c.unit_corruption
                content = np.where(swap, rng.integers(0, c.model.content_units, len(t)), content)
                content = jitter(content, c.model.content_levels, rng.random() * c.unit_jitter, rng)
            rows.append({
                **{f"prompt_{k}": v for k, v in prompt.items()},
                "content": content, "expression": ahead["expression"], "prosody": ahead["prosody"],
                "melody": own["prosody"],
                "past": past, "target": codes, "fine": fine, "mask": (t < n).astype(np.float32),
                "gain": np.array([[rng.normal(0, 6.0)], [rng.normal(0, 6.0)]], np.float32) * training,
                "octaves": np.array([rng.normal(0, c.pitch_jitter / 12)], np.float32) * training,
                "said": own["content"], "who": sequences.speaker[used[0]], "speech": sequences.speech[used[0]],
                **self._more(sequences, np.pad(there, pad, "edge"), prompt_at, np.pad(here, pad, "edge")),
            })  # fmt: skip
        out = {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0]}
        return {**out, "delay": torch.tensor(delay)}

    def _more(self, sequences: Sequences, units: np.ndarray, prompt: np.ndarray,
              codes: np.ndarray) -> dict[str, np.ndarray]:  # fmt: skip
        """What else a row of the batch holds, of the frames [T] of its source's units, [P] of its prompt and [T] of its
        codes."""
        return {}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        c, books = self.config, self.books.to(batch["fine"].device) if self.config.regression else None
        turns = crossed(batch) if self.critics is not None and self.model.training else None
        nll, said, heard = self._said(model, batch, books, turns)
        own = len(batch["mask"])
        nll, mean = nll[:own], said if said is None else said[:own]
        w = torch.tensor(c.codebook_weights[: nll.shape[-1]], device=nll.device)
        mask = batch["mask"][..., None]
        each = (nll * mask).sum((0, 1)) / mask.sum()
        loss = c.likelihood * (each * w).sum() / w.sum()
        numbers = {f"nll_{k}": each[k] for k in range(len(each))}
        if books is not None:
            fine = summed(books, batch["fine"])
            error = ((mean - fine).square() * mask).sum() / mask.sum() / self.spread
            loss, numbers = loss + c.regression * error, {"error": error, **numbers}
            if c.spectral:
                numbers["spectral"] = self._spectral(mean, fine, batch)
                loss = loss + c.spectral * numbers["spectral"]
        if turns is not None:
            heard |= self._judged(said, batch, turns)
            loss = loss + c.likeness * heard["who"] + c.words * heard["words"]
        return loss, numbers | heard

    def _spectral(self, mean: Tensor, fine: Tensor, b: dict[str, Tensor]) -> Tensor:
        """Mean absolute difference of the log-mel spectra that the codec makes of vectors [B, T, d] each: what is near
        in code vectors need not be near in sound."""
        assert isinstance(self.codec, Codec)
        codec = self.codec.to(mean.device).eval()
        sounds = prosody.dequantise(b["melody"])
        with torch.no_grad():
            there = codec.envelope(fine, *sounds)
        return ((codec.envelope(mean, *sounds) - there).abs().mean(-1) * b["mask"]).sum() / b["mask"].sum()

    def _judged(self, said: Tensor, batch: dict[str, Tensor], turns: Turns) -> dict[str, Tensor]:
        """What the critics hear: content in all vectors, the prompt's speaker in those of conversions."""
        assert self.critics is not None
        critics, n = self.critics.to(said.device).train(), len(batch["mask"])
        mask, content, who = batch["mask"][turns.source], batch["said"][turns.source], batch["who"][turns.prompt]
        crossing = slice(n if len(said) > n else 0, None)  # a batch without conversions: each in its own voice
        return {**critics.name(said[crossing], mask[crossing], who[crossing]), **critics.read(said, mask, content)}

    def _said(self, model: nn.Module, b: dict[str, Tensor], books: Tensor | None,
              turns: Turns | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
        """Nats of the codes [N, T, K], mean vectors [N, T, d], and what else was heard of them on the way."""
        prompt = as_source({k[7:]: v for k, v in b.items() if k.startswith("prompt_")}, b["gain"][:, 0])
        source = as_source(b, b["gain"][:, 1], b["octaves"])
        codes, past, target = b["prompt_codes"][..., : self.config.model.n_codebooks], b["past"], b["target"]
        if turns is not None:
            prompt, source = turned(prompt, source, turns)
            codes, past, target = codes[turns.prompt], past[turns.source], target[turns.source]
        return (*model(prompt, codes, source, past, target, int(b["delay"]), books), {})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        device = next(self.model.parameters()).device
        own: list[dict[str, Tensor]] = []
        wrong: list[dict[str, Tensor]] = []
        for i in range(self.config.valid_batches):
            rng = np.random.Generator(np.random.Philox(key=1234, counter=[0, 0, 0, i]))
            b = {k: v.to(device) for k, v in self._draw(self.valid, rng, training=False).items()}
            other = {k: v.roll(1, 0) if k.startswith("prompt_") else v for k, v in b.items()}
            for results, batch in ((own, b), (wrong, other)):
                results.append(self.loss(self.model, batch)[1])
        out = {k: float(np.mean([float(r[k]) for r in own])) for k in own[0]}
        out["nll_0_wrong_prompt"] = float(np.mean([float(r["nll_0"]) for r in wrong]))
        return out | (self._listen(device) if self.config.codec and self.config.listen_pairs else {})

    def _listen(self, device: torch.device) -> dict[str, float]:
        """Convert across speakers and ask the speaker judge: similarity to target, and minus to source."""
        from vivavoce.eval.judges import JudgeError, SpeakerJudge

        try:
            judge = SpeakerJudge()
        except JudgeError:
            return {}
        assert self.codec is not None and isinstance(self.model, VoiceLM)
        codec = self.codec.to(device)
        seqs, rows = self.valid, []
        rng = np.random.Generator(np.random.Philox(key=99))
        lone = np.bincount(seqs.speaker)[seqs.speaker] < 2
        speech = np.flatnonzero(seqs.speech & ~lone & (seqs.split.frames >= 75))
        for _ in range(self.config.listen_pairs if len(speech) > 1 else 0):
            a, b = (int(i) for i in rng.choice(speech, 2, replace=False))
            if seqs.speaker[a] == seqs.speaker[b]:
                continue
            n = min(int(seqs.split.frames[a]), 250)
            own = self._tensors(seqs.arrays(seqs.split.offsets[a] + np.arange(n)), device)
            prompt = seqs.prompt(rng, [b], np.zeros(0), max(self.config.prompt_frames))
            there = self._tensors(seqs.arrays(prompt), device)
            moved = as_source(own, 0.0, _register(there) - _register(own))
            codes, _ = self.model.generate(moved, self.model.start(as_source(there), there["codes"]), 0, 0.5)
            heard = [codec.decode(codes, moved.f0, moved.periodicity, moved.level)[0]]
            for x in (there, own):
                heard.append(codec.decode(x["codes"], *prosody.dequantise(x["prosody"]))[0])
            rate = codec.config.sample_rate
            y, target, source = (judge.embed(resample(w.cpu(), rate, RATE)[0].numpy()) for w in heard)
            rows.append((y @ target, y @ target - y @ source))
        similarity, margin = np.mean(rows, axis=0) if rows else (float("nan"), float("nan"))
        return {"to_target": float(similarity), "margin": float(margin)}

    @staticmethod
    def _tensors(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
        return {k: torch.from_numpy(v)[None].to(device) for k, v in arrays.items()}

    def export(self, folder: Path) -> None:
        assert isinstance(self.model, VoiceLM)
        self.model.save_pretrained(folder)


def codec_of(tokens: Tokens, name: str) -> VoiceCodec:
    """The codec behind the tokens. Raises ConfigError, before training starts, for one that cannot be it."""
    codec = load_codec(name)
    for what, found, want in (
        ("frames a second", float(codec.grid.code_rate), float(tokens.grid.code_rate)),
        ("codes a codebook", codec.config.codebook_size, tokens.head["codebook_size"]),
        ("codebooks", codec.config.n_codebooks, tokens.head["codebooks"]),
    ):
        if found != want:
            raise ConfigError(f"codec: {name} has {found:g} {what}, but {tokens.folder} was made with {want:g}")
    return codec


def _register(arrays: dict[str, Tensor]) -> float:
    f0, periodicity, _ = prosody.dequantise(arrays["prosody"])
    return float(np.log2(prosody.mean_register(f0, periodicity)))


def run(config: LMRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(LMTask(config), config.train)
