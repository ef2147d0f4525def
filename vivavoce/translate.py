"""Files in translation mode: what was said, said again by the target, in as much time as it takes.

    source -> units -> translator -> target units with durations of their own
              expression, pitch, level of the source, warped to the new timing by aligning the two
           -> language model and codec, as in a stream

Not live: a stretch is heard whole before a word of it is said.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vivavoce.changer import Changer, model_folder
from vivavoce.core.align import distances, dtw, warp
from vivavoce.core.audio import mono_blocks, open_audio
from vivavoce.core.checkpoint import read_json
from vivavoce.core.errors import AudioError, CheckpointError, VivavoceError
from vivavoce.core.resample import resample
from vivavoce.engine import Settings
from vivavoce.fit import mend
from vivavoce.guidance import steerable
from vivavoce.lm import Source
from vivavoce.lm.translator import Bounds, Pieces, Translator
from vivavoce.stream import limit
from vivavoce.units import prosody
from vivavoce.units.bpe import UnitBPE
from vivavoce.voice import Voice

LONGEST_FRAMES, SHORTEST_FRAMES = 400, 200  # of a stretch that is translated at a time: 8 s, 4 s; as in training
MOST_SECONDS = 600.0  # of a file
PROMPT_FRAMES = 200


class TranslationMode:
    """A changer with a translator before its language model."""

    def __init__(self, changer: Changer, folder: str | Path, model: str | Path | None = None,
                 emotion: str | None = None, bounds: Bounds | None = None) -> None:  # fmt: skip
        """`folder` is what `vivavoce train translate` exports, `model` where the changer was loaded from.

        Raises:
            CheckpointError: no translator there, or one of other units than the changer's.
            VivavoceError: an emotion that it does not know.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no translator (config.json is missing); train one with "
                                  "`vivavoce train translate` and name its export folder with --translator")
        self.changer, self.bounds, self.emotion = changer, bounds or Bounds(), emotion
        self.translator, self.bpe = Translator.from_pretrained(folder), UnitBPE.load(folder / "bpe")
        weights = (model_folder(model) / "units" / "model.safetensors").read_bytes()
        heard = read_json(folder / "units.json").get("units_sha256") == hashlib.sha256(weights).hexdigest()
        if not heard or self.bpe.units != changer.lm.config.content_units:
            raise CheckpointError(f"{folder}: a translator of another model's units; train one on tokens of this model")
        if self.bpe.pieces != self.translator.config.pieces:
            raise CheckpointError(f"{folder}: translator and unit BPE do not belong together; export it again")
        if emotion is not None and emotion not in self.translator.config.emotions:
            known = ", ".join(self.translator.config.emotions) or "none"
            raise VivavoceError(f"emotion {emotion!r}: this translator knows {known}")

    def convert_blocks(self, path: str | Path, voice: Voice, settings: Settings, seconds: float = 1.0,
                       scan: bool = True) -> Iterator[Tensor]:  # fmt: skip
        """Like Changer.convert_blocks, but of any length; yields a block a stretch. `seconds` plays no part."""
        with open_audio(path) as f:
            rate = int(f.samplerate)
            if f.frames > MOST_SECONDS * rate:
                raise AudioError(f"{path}: longer than {MOST_SECONDS:.0f} s, which translation holds in memory; cut it")
        x = torch.cat(list(mono_blocks(path)))
        if settings.source_register is None and scan:
            settings = replace(settings, source_register=self.changer.scan_register(path, voice.register))
        inner = self.changer.codec.config.sample_rate
        for y in self.convert(resample(x[None], rate, inner)[0], voice, settings):
            yield resample(y[None], inner, rate)[0]

    @torch.inference_mode()
    def convert(self, x: Tensor, voice: Voice, settings: Settings) -> Iterator[Tensor]:
        """16 kHz mono samples [n] -> 16 kHz samples, a block a stretch."""
        changer = self.changer
        content, expression, units, _ = changer.tokenise(x)
        f0, periodicity, level = prosody.dequantise(units)
        register = settings.source_register or changer.register(content, f0, periodicity, voice.register)
        f0 = f0 * 2.0 ** (math.log2(voice.register / register) + settings.transpose / 12.0)
        crowd = changer.crowd if settings.guidance > 0 else None
        for n, (a, b) in enumerate(stretches(level.numpy(), SHORTEST_FRAMES, LONGEST_FRAMES)):
            source = content[a:b].numpy()
            said = self.translate(source, voice, settings, n)
            when = self.timing(source, said)
            said, index = self.detailed(source, said, when), a + torch.from_numpy(when)
            new = Source(torch.from_numpy(said)[None], expression[index][None], f0[index][None],
                         periodicity[index][None], level[index][None])  # fmt: skip
            delay = settings.unhurried(changer.lm).delay or 0
            ahead = torch.arange(delay, len(said) + delay).clamp_max(len(said) - 1)
            prompt = (crowd.source(), crowd.codes[None].long()) if crowd is not None else None
            lm = changer.lm.start(voice.source(), voice.codes[None].long(), prompt)
            codes, _ = changer.lm.generate(Source(*(t[:, ahead] for t in new)), lm, settings.seed,
                                           settings.temperature, delay, settings.guidance)  # fmt: skip
            if steerable(changer.codec, changer.lm):
                codes = mend(changer.codec.quantiser.decode(codes), voice.fit, settings.fit)
            # one frame more closes the overlap; it repeats the last and is cut off
            more = torch.cat((torch.arange(len(said)), torch.tensor([len(said) - 1])))
            y, _ = changer.codec.decode(codes[:, more], new.f0[:, more], new.periodicity[:, more],
                                        new.level[:, more], None, settings.seed)  # fmt: skip
            yield limit(y[0, changer.codec.config.hop :])

    def translate(self, content: np.ndarray, voice: Voice, settings: Settings, stretch: int = 0) -> np.ndarray:
        """Content units [T] of a stretch -> the target's [T']."""
        pieces, durations = self.bpe.encode(content)
        prompt = self.bpe.encode(voice.content[:PROMPT_FRAMES].numpy())
        found = self.translator.translate(
            _pieces(pieces, self.bpe.totals(pieces, durations)), _pieces(prompt[0], self.bpe.totals(*prompt)),
            self.emotion, settings.seed + stretch, settings.temperature, self.bounds)  # fmt: skip
        said = found.pieces[0].numpy()
        return self.bpe.decode(said, self.bpe.share(said, found.frames[0].numpy()))

    @torch.inference_mode()
    def timing(self, source: np.ndarray, said: np.ndarray) -> np.ndarray:
        """The frame of the source [T] that each frame of what is said [T'] answers to, [T'], in order."""
        a, b = (self.changer.lm.content(torch.from_numpy(x)).numpy() for x in (source, said))
        return warp(dtw(distances(a, b), penalty=0.1)[0])

    def detailed(self, source: np.ndarray, said: np.ndarray, when: np.ndarray) -> np.ndarray:
        """Where classes stood for units: the source's own unit wherever it is of the class that is said."""
        if self.bpe.coarse is None:
            return said
        own = source[when]
        return np.where(self.bpe.coarse.classes(own) == self.bpe.coarse.classes(said), own, said)


def stretches(level: np.ndarray, shortest: int, longest: int) -> list[tuple[int, int]]:
    """Cut frames of level (dB) [T] into stretches of at most `longest` frames, each at the quietest quarter of a
    second that leaves it `shortest` or more: [(start, end), ...]."""
    out, at = [], 0
    calm = np.convolve(np.pad(10.0 ** (level / 10.0), 6, mode="edge"), np.ones(13) / 13, mode="valid")
    while len(level) - at > longest:
        cut = at + shortest + int(calm[at + shortest : at + longest].argmin())
        out.append((at, cut))
        at = cut
    return [*out, (at, len(level))]


def _pieces(pieces: np.ndarray, frames: np.ndarray) -> Pieces:
    return Pieces(torch.from_numpy(pieces)[None], torch.from_numpy(frames)[None])
