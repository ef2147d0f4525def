"""Unit BPE: runs of content units as pieces of a SentencePiece model; durations are kept apart.

    units [T]  ->  values [N], durations [N]  ->  pieces [P] over the values
               <-                             <-                exact both ways

SentencePiece (Kudo & Richardson 2018) sees a clip as one "word" of private-use characters, one a value. Every
value is in its alphabet whether training saw it or not, so that nothing is ever unknown: the floor of the
vocabulary is `values + 1` (the unknown piece, which never occurs), and the plane of 65,534 private characters
bounds them. Where units are more, or too many for pairs of them to recur, classes stand for them: units.coarse.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.core.checkpoint import atomic_path, read_json, write_json
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.units.coarse import Coarse

PRIVATE, MOST_VALUES = 0xF0000, 65534  # Supplementary Private Use Area-A
FORMAT, MODEL_TYPE = 1, "vivavoce-unit-bpe"
SPLITTERS = ("split_by_unicode_script", "split_by_number", "split_by_whitespace", "split_digits",
             "add_dummy_prefix", "remove_extra_whitespaces")  # fmt: skip


def deduplicate(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units [T] -> values [N] and their durations [N] in frames; `np.repeat(*...)` is the way back."""
    units = np.asarray(units, np.int64)
    starts = np.flatnonzero(np.concatenate(([True], units[1:] != units[:-1])))[: len(units)]
    return units[starts], np.diff(np.append(starts, len(units)))


class UnitBPE:
    """Frames of content units to pieces with durations, and back.

    Attributes:
        units: content units of the frames.
        values: size of the alphabet: `units`, or the classes of `coarse`.
        coarse: where there are too many units, their classes; else None.
        usual: frames that a value usually lasts [values], for a piece whose frames are to be shared out.
        pieces: size of the vocabulary.
        spelled: the values of each piece.
    """

    def __init__(self, proto: bytes, units: int, usual: np.ndarray, coarse: Coarse | None = None) -> None:
        """Raises ConfigError when SentencePiece is not installed, CheckpointError when `proto` is no such model,
        or not one of this alphabet."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise ConfigError("unit BPE needs SentencePiece: pip install sentencepiece") from None
        try:
            self.model = SentencePieceProcessor(model_proto=proto)
        except RuntimeError as e:
            raise CheckpointError(f"not a SentencePiece model ({e})") from None
        self.proto, self.units, self.usual, self.coarse = proto, units, usual, coarse
        self.values, self.pieces = len(usual), self.model.get_piece_size()
        if self.values != (units if coarse is None else len(coarse)):
            raise CheckpointError(f"an alphabet of {self.values} does not go with {units} units or their classes")
        words = [() if self.model.is_unknown(i) else _values(self.model.id_to_piece(i)) for i in range(self.pieces)]
        self.spelled: list[tuple[int, ...]] = words
        lacking = self.values - len({w for w in words if len(w) == 1 and 0 <= w[0] < self.values})
        if lacking or any(not 0 <= v < self.values for w in words for v in w):
            raise CheckpointError(f"the SentencePiece model is not one of {self.values} units")

    @classmethod
    def train(cls, clips: Iterable[np.ndarray], units: int, pieces: int, kind: str = "unigram",
              longest: int = 8, coarse: Coarse | None = None, threads: int = 1) -> UnitBPE:  # fmt: skip
        """Fit to clips of content units [T] each.

        Args:
            units: content units there are.
            pieces: size of the vocabulary, more than the alphabet; fewer come out where the clips hold no more.
            kind: unigram (Kudo 2018) or bpe (Sennrich et al. 2016).
            longest: values in a piece, at most.
            coarse: classes to stand for the units.

        Raises:
            ConfigError: impossible sizes, no clips, no SentencePiece.
        """
        try:
            from sentencepiece import SentencePieceTrainer
        except ImportError:
            raise ConfigError("unit BPE needs SentencePiece: pip install sentencepiece") from None
        values = units if coarse is None else len(coarse)
        if kind not in ("unigram", "bpe"):
            raise ConfigError(f"kind {kind!r}: use unigram or bpe")
        if not 0 < values <= MOST_VALUES:
            raise ConfigError(f"{values} units: SentencePiece is given 1 to {MOST_VALUES}; let coarse classes stand in")
        if pieces <= values:
            raise ConfigError(f"pieces={pieces}: each of {values} units is a piece, so give {values + 1} or more")
        frames, runs, text = np.zeros(values), np.zeros(values), []
        for clip in clips:
            found, durations = deduplicate(clip if coarse is None else coarse.classes(clip))
            np.add.at(frames, found, durations)
            np.add.at(runs, found, 1)
            text.append(_characters(found))
        if not any(text):
            raise ConfigError("no clip to train unit BPE on")
        text += [_characters(np.array([v])) for v in range(values)]  # the whole alphabet, and no pair by it
        out, never = io.BytesIO(), dict.fromkeys(SPLITTERS, False)
        SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=out, model_type=kind, vocab_size=pieces, hard_vocab_limit=False,
            character_coverage=1.0, normalization_rule_name="identity", max_sentencepiece_length=longest,
            max_sentence_length=2**24, num_threads=threads, minloglevel=2, bos_id=-1, eos_id=-1, pad_id=-1, unk_id=0,
            **never)  # type: ignore[arg-type]  # fmt: skip
        return cls(out.getvalue(), units, (frames / np.maximum(runs, 1)).clip(1.0), coarse)

    def encode(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Content units [T] -> pieces [P], and the duration of each value in them [N >= P].

        Raises ConfigError on a unit outside the alphabet.
        """
        frames = np.asarray(frames, np.int64)
        if len(frames) and not (frames.min() >= 0 and frames.max() < self.units):
            raise ConfigError(f"units {frames.min()} to {frames.max()}: this unit BPE knows 0 to {self.units - 1}")
        values, durations = deduplicate(frames if self.coarse is None else self.coarse.classes(frames))
        return np.array(self.model.encode(_characters(values)), np.int64), durations

    def decode(self, pieces: Sequence[int] | np.ndarray, durations: Sequence[int] | np.ndarray) -> np.ndarray:
        """What went into `encode`, [T]; of classes, the typical unit of each."""
        values = np.array([v for p in pieces for v in self.spelled[int(p)]], np.int64)
        if self.coarse is not None:
            values = self.coarse.typical[values]
        return np.repeat(values, durations)

    def totals(self, pieces: Sequence[int] | np.ndarray, durations: np.ndarray) -> np.ndarray:
        """Durations [N] of values -> frames of each piece [P]."""
        ends = np.cumsum([len(self.spelled[int(p)]) for p in pieces], dtype=np.int64)
        return np.diff(np.concatenate(([0], np.cumsum(durations)))[np.concatenate(([0], ends))])

    def share(self, pieces: Sequence[int] | np.ndarray, totals: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames of each piece [P] -> durations of its values [N], in proportion to the usual ones.

        A value lasts a frame at least, so a piece may come out longer than its total."""
        out = []
        for piece, total in zip(pieces, totals):
            usual = self.usual[list(self.spelled[int(piece)])]
            spare = max(0, int(total) - len(usual))
            ends = np.round(np.cumsum(usual) / max(usual.sum(), 1e-9) * spare)
            out.append(1 + np.diff(np.concatenate(([0.0], ends))).astype(np.int64))
        return np.concatenate(out) if out else np.zeros(0, np.int64)

    def save(self, folder: str | Path) -> None:
        """Write `units.model`, `config.json` and, if there are classes, `coarse.safetensors`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "units.model") as temp:
            temp.write_bytes(self.proto)
        if self.coarse is not None:
            self.coarse.save(folder / "coarse.safetensors")
        write_json(folder / "config.json", {
            "model_type": MODEL_TYPE, "format_version": FORMAT, "units": self.units, "pieces": self.pieces,
            "coarse": self.coarse is not None, "usual": self.usual.round(3).tolist()})  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> UnitBPE:
        """Read what `save` wrote. Raises CheckpointError when it is missing, foreign or damaged."""
        folder = Path(folder)
        head: Any = read_json(folder / "config.json")
        if not isinstance(head, dict) or head.get("model_type") != MODEL_TYPE:
            raise CheckpointError(f"{folder}: holds no unit BPE; make one with `vivavoce train unit_bpe`")
        if head.get("format_version") != FORMAT:
            raise CheckpointError(f"{folder}: unit BPE of another format; train it again")
        try:
            coarse = Coarse.load(folder / "coarse.safetensors") if head["coarse"] else None
            proto = (folder / "units.model").read_bytes()
            return cls(proto, int(head["units"]), np.array(head["usual"], float), coarse)
        except OSError as e:
            raise CheckpointError(f"{folder / 'units.model'}: cannot be read ({e.strerror})") from None
        except (KeyError, TypeError, ValueError) as e:
            raise CheckpointError(f"{folder / 'config.json'}: incomplete ({e!r}); train it again") from None
        except CheckpointError as e:
            raise CheckpointError(f"{folder}: {e}") from None


def _characters(values: np.ndarray) -> str:
    return "".join(chr(PRIVATE + int(v)) for v in values)


def _values(piece: str) -> tuple[int, ...]:
    return tuple(ord(c) - PRIVATE for c in piece)
