"""Train unit encoder and language model together: units that say what the codec's codes need.

`train units` teaches the encoder what a recogniser would label, `train lm` makes the best of that. Here the language
model's loss reaches the encoder: its rounding lets gradients through, so content and expression come to hold what the
target's codes need of a sound, recognised or not. What keeps the speaker out is what keeps it out there: the encoder
hears a perturbed spectrum, the target is the clean clip, and the voice is in the prompt. What comes through of a voice
all the same, critics can be asked to drive out (recipes.critics). Both go on from trained ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.codec import Codec
from vivavoce.core.errors import ConfigError
from vivavoce.lm import Source, VoiceLM
from vivavoce.recipes.corpus import HOP
from vivavoce.recipes.critics import Critics, Turns, turned
from vivavoce.recipes.perturb import perturb, spec_mask
from vivavoce.recipes.readers import load_reader
from vivavoce.recipes.sources import PackSource
from vivavoce.recipes.tokens import Tokens
from vivavoce.recipes.train_lm import LMRecipe, LMTask, Sequences, as_source
from vivavoce.recipes.trainer import fit
from vivavoce.units import UnitEncoder


@dataclass
class JointRecipe(LMRecipe):
    """`vivavoce train joint` reads this: what `train lm` does, and where the waveforms and the encoder are."""

    pack: str = ""  # the pack behind the tokens
    units: str = ""  # folder of the encoder to go on from; tokens may be of another one
    warp: float = 0.17  # speaker perturbation, as in train units
    eq_db: float = 5.0
    pitch_warp: float = 0.4
    mask_bands: int = 10
    mask_steps: int = 10
    leak: float = 0.0  # weight of what a critic that learns beside hears of the source's speaker in conversions
    reader: str | None = None  # folder of what reads what is said once it is sound (recipes.readers)
    reread: float = 3.0  # weight of its squared error, as a share of the variance


class JointTrainer(nn.Module):
    """Encoder and language model, from waveforms to the likelihood of codes; and, where there are any, ears that learn
    to hear in what these say whose voice the source was (the adversarial source classifier of StarGANv2-VC, Li et al.
    2021)."""

    def __init__(self, encoder: UnitEncoder, lm: VoiceLM, ears: Critics | None = None) -> None:
        super().__init__()
        self.encoder, self.lm, self.ears = encoder, lm, ears

    def levels(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel at half hops [B, 2 (T + lookahead), M] -> levels of content [B, T, n] and of expression
        [B, T, channels]: whole numbers that gradients pass through."""
        enc = self.encoder
        h = enc.features(mel)[0][:, enc.config.lookahead :]
        both = (enc.content_fsq, enc.content_head(h)), (enc.fsq, enc.expression_head(h))
        content, expression = ((fsq(x)[0] + 1) * fsq.reach for fsq, x in both)
        return content, expression

    def forward(self, wave: Tensor, prompt_wave: Tensor, prompt: Source, prompt_codes: Tensor, source: Source,
                past: Tensor, target: Tensor, delay: int, books: Tensor | None, change: tuple[float, float, float],
                masks: tuple[int, int], mask: Tensor, turns: Turns | None = None,
                who: Tensor | None = None) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:  # fmt: skip
        """VoiceLM.forward, with the units of `prompt` and `source` read anew from waveforms [B, (T + lookahead) * hop],
        and what the ears say (`doubt`).

        Args:
            change: warp, equaliser (dB) and pitch warp of `perturb`; zeros leave the spectrum as it is.
            masks: bands and steps of `spec_mask`.
            mask: which frames [B, T] count.
            turns: which rows to say in the voices of which; without, each in its own.
            who: speakers [B], for the ears.
        """
        enc = self.encoder
        with torch.no_grad():
            mel, _ = enc.spectra(prompt_wave)
            content, expression = enc.read(mel)[0]
            d = enc.config.lookahead
            prompt = prompt._replace(content=content[:, d:], expression=expression[:, d:])
            mel, _ = enc.spectra(wave)
            if any(change):
                warp, eq_db, pitch = change
                mel = perturb(mel, warp, eq_db, pitch=pitch)
            if any(masks):
                mel = spec_mask(mel, *masks)
        content, expression = self.levels(mel)
        source = source._replace(content=content, expression=expression)
        if turns is not None:
            prompt, source = turned(prompt, source, turns)
            prompt_codes, past, target = prompt_codes[turns.prompt], past[turns.source], target[turns.source]
        nll, mean = self.lm(prompt, prompt_codes, source, past, target, delay, books)
        heard: dict[str, Tensor] = {}
        if self.ears is not None and turns is not None and who is not None:
            heard = self.doubt(self.ears, mean, mask, who, turns)
        return nll, mean, heard

    @staticmethod
    def doubt(ears: Critics, said: Tensor, mask: Tensor, who: Tensor, turns: Turns) -> dict[str, Tensor]:
        """What was said, vectors [N, T, d], own voices first -> nats: `ears`, of the speaker of the source, which
        teaches the ears alone; `leak`, of the prompt's speaker in conversions, which teaches all but the ears."""
        mask, n = mask[turns.source], len(mask)
        learnt = ears.name(said.detach(), mask, who[turns.source])
        crossing = slice(n if len(said) > n else 0, None)
        ears.requires_grad_(False)
        pleased = ears.name(said[crossing], mask[crossing], who[turns.prompt][crossing])
        ears.hearing().requires_grad_(True)
        return {"ears": learnt["who"], "ears_hit": learnt["who_hit"], "leak": pleased["who"]}


class JointTask(LMTask):
    """See recipes.trainer.Task."""

    config: JointRecipe
    of_tokens: ClassVar[tuple[str, ...]] = ("codebook_size",)  # units are read anew; critics hear those of the tokens

    def __init__(self, config: JointRecipe) -> None:
        for name, what in (("start_from", "language model to go on from (vivavoce train lm)"),
                           ("units", "encoder to go on from (vivavoce train units)"),
                           ("pack", "pack the tokens are made of (vivavoce prepare)")):  # fmt: skip
            if not getattr(config, name):
                raise ConfigError(f"{name}: say which {what}")
        head = Tokens(config.tokens).head
        encoder = UnitEncoder.from_pretrained(config.units)
        if not encoder.config.content_levels:
            raise ConfigError(f"units: {config.units} has classes for content, and only product codes (content_levels) "
                              "let gradients through")  # fmt: skip
        self.waves = PackSource(config.pack, list(head["shards"]), head["shard_clips"], head.get("speeds", ()))
        if self.waves.digest != head["pack_sha256"]:
            raise ConfigError(f"pack: {config.tokens} was not made of {config.pack}")
        self.lookahead = encoder.config.lookahead
        self.reader: nn.Module | None = None
        super().__init__(config)
        assert isinstance(self.model, VoiceLM)
        self.reader = self._reader(config.reader) if config.reader else None
        ears = None
        if config.critics and config.leak:  # the ears begin as one of the critics
            ears = Critics.from_pretrained(config.critics)
            ears.requires_grad_(False).hearing().requires_grad_(True)
        self.model = JointTrainer(encoder, self.model, ears)
        for p in encoder.pitch.parameters():
            p.requires_grad_(False)

    def _reader(self, folder: str) -> nn.Module:
        if self.critics is None or not isinstance(self.codec, Codec):
            raise ConfigError("reader: needs critics= and, in codec=, a codec of ours, through which it hears")
        self.codec.requires_grad_(False)
        return load_reader(folder, Tokens(self.config.tokens).head["content_levels"], self.waves.pack)

    def _more(self, sequences: Sequences, units: np.ndarray, prompt: np.ndarray,
              codes: np.ndarray) -> dict[str, np.ndarray]:  # fmt: skip
        part = "train" if sequences is self.train else self.held
        frames = {"wave": units, "prompt_wave": prompt} | ({"recording": codes} if self.reader is not None else {})
        return {k: self._wave(part, sequences, at) for k, at in frames.items()}

    def _wave(self, part: str, sequences: Sequences, frames: np.ndarray) -> np.ndarray:
        """The audio of frames [T] of the tokens, and of the look-ahead after them: [(T + lookahead) * hop]."""
        offsets, clips = sequences.split.offsets, self.waves.clips[part]
        at = np.concatenate((frames, frames[-1] + 1 + np.arange(self.lookahead)))
        clip = np.searchsorted(offsets, at, side="right") - 1
        clip[len(frames) :] = clip[len(frames) - 1]  # what lies beyond the last clip's end is silence
        out = np.zeros((len(at), HOP), np.float32)
        for i in np.unique(clip):
            here, x = clip == i, self.waves.waveform(clips[i]).reshape(-1, HOP)
            local = at[here] - offsets[i]
            out[here] = np.where((local < len(x))[:, None], x[np.minimum(local, len(x) - 1)], 0.0)
        return out.reshape(-1)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, numbers = super().loss(model, batch)
        if "reread" in numbers:
            loss = loss + self.config.reread * numbers["reread"]
        if "leak" in numbers:  # the ears' own loss moves nothing but them
            loss = loss + self.config.leak * numbers["leak"] + numbers["ears"]
        return loss, numbers

    def _judged(self, said: Tensor, batch: dict[str, Tensor], turns: Turns) -> dict[str, Tensor]:
        heard = super()._judged(said, batch, turns)
        return heard | self._reread(said, batch, turns) if self.reader is not None else heard

    def _reread(self, said: Tensor, b: dict[str, Tensor], turns: Turns) -> dict[str, Tensor]:
        """Vectors [N, T, d], own voices first -> `reread`, how far what the reader makes of their sound is from what it
        makes of the recordings. Of half as many rows as the batch has, the last ones, conversions if there are any:
        sound is dear."""
        reader, codec = self.reader, self.codec
        assert reader is not None and isinstance(codec, Codec)
        reader, codec, some = reader.to(said.device), codec.to(said.device).eval(), -(-len(b["mask"]) // 2)
        prompt = as_source({k[7:]: v for k, v in b.items() if k.startswith("prompt_")})
        source = turned(prompt, as_source({**b, "prosody": b["melody"]}), turns)[1]
        f0, periodicity, level = (x[-some:] for x in source[2:])
        sound = codec.decode(said[-some:], f0, periodicity, level)[0][:, codec.late * HOP :]
        sound = torch.nn.functional.pad(sound, (0, codec.late * HOP))
        recording, units, mask = (b[k][turns.source][-some:] for k in ("recording", "said", "mask"))
        known = mask > 0
        known[:, -codec.late :] = False  # their sound is not whole
        return {"reread": reader(sound, recording[:, : sound.shape[1]], units, known)}

    def _said(self, model: nn.Module, b: dict[str, Tensor], books: Tensor | None,
              turns: Turns | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
        c = self.config
        prompt = as_source({k[7:]: v for k, v in b.items() if k.startswith("prompt_")}, b["gain"][:, 0])
        source = as_source(b, b["gain"][:, 1], b["octaves"])
        codes = b["prompt_codes"][..., : c.model.n_codebooks]
        change, masks = (c.warp, c.eq_db, c.pitch_warp), (c.mask_bands, c.mask_steps)
        if not self.model.training:
            change, masks = (0.0, 0.0, 0.0), (0, 0)
        return model(b["wave"], b["prompt_wave"], prompt, codes, source, b["past"], b["target"], int(b["delay"]), books,
                     change, masks, b["mask"], turns, b.get("who"))  # fmt: skip

    def _listen(self, device: torch.device) -> dict[str, float]:
        return {}  # the tokens' units are not this encoder's any more

    def export(self, folder: Path) -> None:
        model: Any = self.model
        model.encoder.save_pretrained(folder / "units")
        model.lm.save_pretrained(folder / "lm")


def run(config: JointRecipe) -> dict[str, float]:
    """Train, validate, export."""
    return fit(JointTask(config), config.train)
