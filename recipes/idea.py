"""The idea this project started from, as an ablation: cut a recogniser before its text, a synthesiser after
its text, and train what lies between. What reaches the core is chosen; all else is the same small recipe.

    content: native     the unit encoder of the tokens (a student of the recogniser, live)
             teacher    the recogniser's own encoder, cut before its text layers: labels of the pack (offline)
             phonemes   what is left one layer later: a phoneme a frame, blank where nothing was recognised
    prosody: source     pitch, periodicity and level of the source go round the core, to the codec
             table      they do not: each symbol's mean periodicity and level, and the speaker's mean pitch

Speech without phoneme spans is left out of every variant, so that all of them train on the same clips. There
are no perturbed views: what a content leaks of its speaker shows in `margin`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vivavoce.codec import Codec
from vivavoce.core.audio import save
from vivavoce.core.checkpoint import write_json
from vivavoce.core.config import from_dict
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.eval.measure import Pair, measure
from vivavoce.lm import VoiceLM
from vivavoce.recipes import label, train_lm
from vivavoce.recipes.corpus import HOP, NO_LABEL, RATE, Pack
from vivavoce.recipes.derive import Columns, derive
from vivavoce.recipes.tokenise import Tokens, TokenSplit
from vivavoce.recipes.train_lm import LMRecipe, Sequences, as_source
from vivavoce.units import prosody

CONTENTS, PROSODIES = ("native", "teacher", "phonemes"), ("source", "table")
EVENTS = ("laugh", "cry", "sob")


@dataclass
class IdeaRecipe:
    """`vivavoce train idea` reads this."""

    tokens: str
    pack: str  # behind the tokens: teacher labels, and the sources that judges compare with
    phonemes: str  # JSONL (.gz) of {"id", "phonemes", "spans"}
    codec: str  # behind the tokens
    out: str
    content: str = "native"
    prosody: str = "source"
    expression: bool = False  # keep the expression units; else they are constant
    spans_earlier: int = 3  # frames by which the spans lie late
    lm: dict = field(default_factory=dict)  # recipes.train_lm.LMRecipe; paths and alphabet are filled in
    splits: list[str] = field(default_factory=lambda: ["train", "valid"])
    judged: int = 24  # held-out clips of speech, and as many of laughs, cries and sobs, that are judged
    judges: list[str] = field(default_factory=lambda: ["speaker", "phonemes", "pitch", "events"])
    temperature: float = 0.4


class Swap:
    """The columns of each clip under a recipe; see derive."""

    def __init__(self, config: IdeaRecipe, tokens: Tokens) -> None:
        if config.content not in CONTENTS or config.prosody not in PROSODIES:
            raise ConfigError(f"content is one of {', '.join(CONTENTS)}; prosody one of {', '.join(PROSODIES)}")
        self.config, self.tokens, self.pack = config, tokens, Pack(config.pack)
        self.spans = label.read_phonemes(config.phonemes)
        self.where = {c["id"]: (c["offset"], c["frames"]) for c in self.pack.clips}
        self.data = {s: tokens.split(s) for s in config.splits}
        alien = [c["id"] for d in self.data.values() for c in d.clips if c["id"] not in self.where]
        if alien:
            raise CorpusError(f"{config.pack}: not the pack behind the tokens (clip {alien[0]!r} is not in it)")
        phones = 1 + max((p for s in self.spans.values() for p, _, _ in s), default=0)
        labels = self.pack.teacher.astype(np.int64)
        teacher = int(labels[labels != NO_LABEL].max(initial=-1)) + 1
        if config.content == "teacher" and not teacher:
            raise CorpusError(f"{config.pack}: holds no teacher labels; prepare it with teacher=")
        self.symbols = {"native": int(tokens.head["content_units"]), "teacher": teacher + 1,
                        "phonemes": phones + 1}[config.content]  # fmt: skip
        self.levels = list(tokens.head["content_levels"]) if config.content == "native" else []
        if self.levels and config.prosody == "table":
            raise ConfigError("prosody=table needs symbols that recur; native units that pack several levels do not")
        self.table = self._means() if config.prosody == "table" else None

    def content(self, split: str, clip: int) -> np.ndarray | None:
        """Symbols of a clip [T]; None for speech that has no phonemes."""
        d = self.data[split]
        c, at = d.clips[clip], slice(*d.offsets[clip : clip + 2])
        spans, wordless = self.spans.get(c["id"]), c.get("vocalisation", "none") != "none"
        if spans is None and not wordless:
            return None
        if self.config.content == "native":
            return d.content[at]
        if self.config.content == "teacher":
            offset, frames = self.where[c["id"]]
            labels = self.pack.teacher[offset : offset + frames].astype(np.int64)
            return np.where(labels == NO_LABEL, self.symbols - 1, labels)
        out = np.zeros(at.stop - at.start, np.int64)  # 0: blank
        for phone, *ends in spans or ():
            a, b = (max(0, round(t * RATE / HOP) - self.config.spans_earlier) for t in ends)
            out[a:b] = 1 + phone
        return out

    def _means(self) -> tuple[np.ndarray, dict[str, float]]:
        """Periodicity and level of each symbol [symbols, 2], of the training clips; mean pitch of each speaker."""
        total, register = np.zeros((self.symbols, 3)), {}
        for split, d in self.data.items():
            voiced: dict[str, list[np.ndarray]] = {}
            for clip, c in enumerate(d.clips):
                x = self.content(split, clip)
                at = slice(*d.offsets[clip : clip + 2])
                if x is None:
                    continue
                if split == "train":
                    ones = np.ones((len(x), 1), np.int64)
                    np.add.at(total, x, np.concatenate((d.prosody[at][:, 1:], ones), 1))
                pitch = d.prosody[at]
                voiced.setdefault(str(c.get("speaker")), []).append(pitch[pitch[:, 1] > 7, 0])
            for name, values in voiced.items():
                all_ = np.concatenate(values)
                register[name] = float(all_.mean()) if len(all_) else prosody.PITCH_STEPS * 3.0
        mean = total[:, :2].sum(0) / max(total[:, 2].sum(), 1)
        return np.where(total[:, 2:] > 0, total[:, :2] / np.maximum(total[:, 2:], 1), mean), register

    def __call__(self, split: str, clip: int) -> Columns | None:
        x, d = self.content(split, clip), self.data[split]
        if x is None:
            return None
        at = slice(*d.offsets[clip : clip + 2])
        middle = np.array(self.tokens.head["expression_levels"]) // 2
        out = {"content": x, "expression": d.expression[at] if self.config.expression else np.tile(middle, (len(x), 1))}
        if self.table is not None:
            means, register = self.table
            pitch = np.full((len(x), 1), register[str(d.clips[clip].get("speaker"))])
            out["prosody"] = np.concatenate((pitch, means[x]), 1).round()
        return out


def run(config: IdeaRecipe) -> dict[str, float]:
    """Swap, train, judge. A run that was stopped goes on where it was.

    Returns:
        held-out loss in nats a codebook (`nll_0` ...), across speakers `to_target` and `margin`, and what
        judges say of held-out clips said again with a prompt of their own speaker, `codec_` for the codec alone.

    Raises:
        ConfigError, CorpusError: see Swap.
    """
    out, tokens = Path(config.out), Tokens(config.tokens)
    if not (out / "tokens" / "tokens.json").is_file():
        swap = Swap(config, tokens)
        head = {"views": 0, "content_units": swap.symbols, "content_levels": swap.levels}
        derive(tokens, out / "tokens", config.splits, swap, head)
    swapped = Tokens(out / "tokens")
    section = {**config.lm, "tokens": str(out / "tokens"), "codec": config.codec}
    section["train"] = {**config.lm.get("train", {}), "out": str(out / "lm")}
    shape = {k: swapped.head[k] for k in ("content_units", "content_levels", "expression_levels", "codebook_size")}
    section["model"] = {**config.lm.get("model", {}), **shape}
    recipe = from_dict(LMRecipe, section, "lm")
    result = {**train_lm.run(recipe), **judge(config, recipe, tokens, swapped)}
    write_json(out / "result.json", {"content": config.content, "prosody": config.prosody, **result})
    return result


def choose(split: TokenSplit, most: int, peers: Callable[[int], np.ndarray]) -> dict[str, list[int]]:
    """Clips to judge, evenly over speakers, in a fixed order: `speech` and `events`; each with a prompt to be had."""
    rng, out = np.random.default_rng(7), {}
    for name in ("speech", "events"):
        hits = [i for i in rng.permutation(len(split.clips)) if len(peers(i)) > 1 and split.clips[i]["frames"] >= 40
                and (split.clips[i].get("vocalisation", "none") == "none" if name == "speech"
                     else split.clips[i].get("vocalisation") in EVENTS)]  # fmt: skip
        turn: dict[str, int] = {}
        rounds = []
        for i in hits:
            speaker = str(split.clips[i].get("speaker"))
            turn[speaker] = turn.get(speaker, 0) + 1
            rounds.append(turn[speaker])
        out[name] = [int(hits[j]) for j in np.argsort(rounds, kind="stable")[:most]]
    return out


@torch.inference_mode()
def judge(config: IdeaRecipe, recipe: LMRecipe, tokens: Tokens, swapped: Tokens) -> dict[str, float]:
    """Say held-out clips again and measure them against the recordings."""
    held = "valid" if swapped.head["shards"].get("valid") else "train"
    pack, lm = Pack(config.pack), VoiceLM.from_pretrained(Path(config.out) / "lm" / "export")
    codec = Codec.from_pretrained(config.codec)
    sequences, original = Sequences(swapped.split(held), recipe), tokens.split(held)
    split = sequences.split
    true = {c["id"]: original.prosody[a:b] for c, a, b in zip(original.clips, original.offsets, original.offsets[1:])}
    where, folder, result = {c["id"]: c for c in pack.clips}, Path(config.out) / "heard", {}
    for group, clips in choose(split, config.judged, sequences.peers).items():
        pairs: dict[str, list[Pair]] = {"": [], "codec_": []}
        for i in clips:
            clip, rng = split.clips[i], np.random.default_rng(i)
            here = np.arange(*split.offsets[i : i + 2])
            prompt = sequences.prompt(rng, [i], np.zeros(0), max(recipe.prompt_frames))
            arrays = ({k: torch.from_numpy(v)[None] for k, v in sequences.arrays(x).items()} for x in (here, prompt))
            own, there = arrays
            source, codes = as_source(own), own["codes"][..., : recipe.model.n_codebooks]
            said, _ = lm.generate(source, lm.start(as_source(there), there["codes"]), 0, config.temperature)
            full = as_source({**own, "prosody": torch.from_numpy(true[clip["id"]].astype(np.int64))[None]})
            place = where[clip["id"]]
            waves = {"source": torch.from_numpy(pack.waveform(place["offset"], place["frames"]))}
            for name, c, s in (("", said, source), ("codec_", codes, full)):
                waves[name], _ = (y[0] for y in codec.decode(c, s.f0, s.periodicity, s.level))
            fields = {k: str(clip.get(k)) for k in ("vocalisation", "emotion", "language")}
            paths = {}
            for name, wave in waves.items():
                paths[name] = folder / f"{clip['id']}.{name.strip('_') or 'core'}.wav"
                paths[name].parent.mkdir(parents=True, exist_ok=True)
                save(paths[name], wave if name == "source" else torch.nn.functional.pad(wave[HOP:], (0, HOP)), RATE)
            for name in pairs:
                pairs[name].append(Pair(clip["id"], paths["source"], paths[name], None, fields))
        for name, some in pairs.items():
            if some:
                found = measure(some, config.judges, Path(config.out) / f"{name}{group}", progress=False)
                for k, v in found.summary["overall"].items():
                    if v["n"]:
                        result[f"{name}{k}_{group}"] = float(v["mean"])
    return result
