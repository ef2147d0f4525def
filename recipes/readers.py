"""What reads again, as sound, what a language model said: `reader=` of `train joint`, a loss in the space of words.

It is what an ASR loss is to other converters (StarGANv2-VC, Li et al. 2021). Two kinds: the unit encoder behind the
tokens, which costs no other model; or the encoder of a Whisper (Radford et al. 2022), which has heard 680,000 hours and
is not so easily pleased (docs/experiments.md, no. 61). A reader is never trained, and nothing needs it afterwards.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core import radix
from vivavoce.core.checkpoint import read_json
from vivavoce.core.errors import ConfigError
from vivavoce.recipes.corpus import HOP, NO_LABEL, Pack
from vivavoce.recipes.label import discriminant
from vivavoce.recipes.whisper import Whisper
from vivavoce.units import UnitEncoder

LEARN_CLIPS = 400  # of the pack, from which the directions are learnt that matter
DIRECTIONS = 40
LEARN_SOUNDS = 100  # clips of each kind of sound, from which the directions are learnt that tell kinds apart
LONGEST = 150  # frames of each (3 s)


def load_reader(folder: str, levels: list[int], pack: Pack) -> nn.Module:
    """The reader in a folder, frozen.

    Args:
        folder: a unit encoder of ours, or a Whisper (recipes.whisper).
        levels: of the tokens' content units, which an encoder of ours is to share.
        pack: with a teacher's labels, by which a Whisper learns what to heed.

    Raises:
        CheckpointError: no such folder, or neither of these.
        ConfigError: an encoder of other units; a pack without a teacher's labels.
    """
    head = read_json(Path(folder) / "config.json")
    kind = head.get("model_type") if isinstance(head, dict) else None
    if kind == "whisper" or (Path(folder) / "model.bin").is_file():
        return WhisperReader(Whisper(folder).eval(), pack).requires_grad_(False)
    encoder = UnitEncoder.from_pretrained(folder)
    if encoder.config.content_levels != levels:
        raise ConfigError(f"reader: {folder} has content_levels {encoder.config.content_levels}, tokens {levels}; "
                          "name the encoder that made them")  # fmt: skip
    return UnitReader(encoder).eval().requires_grad_(False)


class UnitReader(nn.Module):
    """The encoder that made the tokens: are its levels, before they are rounded, those of the recording?"""

    def __init__(self, encoder: UnitEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, sound: Tensor, recording: Tensor, units: Tensor, known: Tensor) -> Tensor:
        """Sound and recording [N, T * hop], content units of the recording [N, T], which frames count [N, T] -> squared
        error of the levels as a share of their variance."""
        enc, late = self.encoder, self.encoder.config.lookahead
        mel, _ = enc.spectra(F.pad(sound, (0, late * HOP)))
        content = enc.content_head(enc.features(mel)[0][:, late:]).float().tanh() * enc.content_fsq.reach
        levels = radix.unpack(units, list(enc.content_fsq.levels)) - enc.content_fsq.reach
        known = known & (torch.arange(known.shape[1], device=known.device) < known.shape[1] - late)
        error = (content - levels)[known].square().mean(0) / levels[known].var(0).clamp_min(0.1)
        return error.mean()


class WhisperReader(nn.Module):
    """A Whisper: is what it makes of the sound what it makes of the recording?

    Most of what its features tell is not words, so distances are taken along the directions that tell a teacher's
    labels apart (linear discriminant analysis), scaled to unit variance within a label.
    """

    directions: Tensor
    spread: Tensor

    def __init__(self, whisper: Whisper, pack: Pack) -> None:
        super().__init__()
        self.whisper = whisper
        self.apart: list[tuple[Tensor, Tensor]] = []  # see `learn_kinds`
        directions, spread = self._learn(pack)
        self.register_buffer("directions", directions, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, sound: Tensor, recording: Tensor, units: Tensor, known: Tensor) -> Tensor:
        """Sound and recording [N, T * hop], which frames count [N, T] -> squared distance along the directions, as a
        share of their variance."""
        return self.distances(sound, recording, known)[0]

    def distances(self, sound: Tensor, recording: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`'s; and the squared distance of the layers before the last, all of whose features count alike, as a
        share of their variance: these know voices, laughs and cries, too (docs/experiments.md, no. 66)."""
        with torch.no_grad():
            there = [x.float()[known] for x in self.whisper.layers(recording)]
        here = [x.float()[known] for x in self.whisper.layers(sound)]
        norm = self.whisper.encoder.layer_norm
        words = (norm(here[-1]) - norm(there[-1])).float() @ self.directions
        layers = [((x - y).square().mean(0) / y.var(0).clamp_min(1e-4)).mean() for x, y in zip(here[:-1], there[:-1])]
        return words.square().sum(-1).mean() / self.spread, torch.stack(layers).mean()

    def kinds(self, sound: Tensor, recording: Tensor, known: Tensor) -> Tensor:
        """Sound and recording [N, T * hop], which frames count [N, T] -> squared distance of the middle layers along
        the directions that tell laughs, cries, sighs, speech, ... apart (`learn_kinds`), as a share of their
        variance."""
        with torch.no_grad():
            there = self._middle(recording)
        missed = [(((x - y)[known] @ along).square().sum(-1).mean() / variance)
                  for x, y, (along, variance) in zip(self._middle(sound), there, self.apart)]  # fmt: skip
        return torch.stack(missed).mean()

    def _middle(self, wave: Tensor) -> list[Tensor]:
        """Waveform [N, T * hop] -> the layers that know most of sounds that are no words (Gong et al. 2023), a fifth of
        a second's mean around each frame, [N, T, dim] each."""
        depth = len(self.whisper.encoder.layers)
        layers = self.whisper.layers(wave, depth // 2 + 1)[max(depth // 2 - 1, 0) :]
        return [F.avg_pool1d(x.float().mT, 9, 1, 4, count_include_pad=False).mT for x in layers]

    @torch.no_grad()
    def learn_kinds(self, pack: Pack) -> None:
        """Directions [dim, n] of each middle layer that tell the vocalisations of the train split apart (linear
        discriminant analysis, as for words), and its variance along them. Kinds of a few clips are left out.

        Raises:
            ConfigError: there are fewer than two.
        """
        kinds: dict[str, list[dict]] = {}
        for clip in pack.split("train"):
            kinds.setdefault(clip.get("vocalisation") or "none", []).append(clip)
        known = [clips for clips in kinds.values() if len(clips) >= LEARN_SOUNDS // 4]
        if len(known) < 2:
            raise ConfigError(f"kinds: {pack.folder} has fewer than two vocalisations with {LEARN_SOUNDS // 4} clips "
                              "to train on")  # fmt: skip
        heard: list[list[Tensor]] = []
        labels: list[int] = []
        rng = np.random.default_rng(0)
        for label, clips in enumerate(known):
            for i in rng.permutation(len(clips))[:LEARN_SOUNDS]:
                n = min(clips[i]["frames"], LONGEST)
                heard.append([x[0] for x in self._middle(torch.from_numpy(pack.waveform(clips[i]["offset"], n))[None])])
                labels += [label] * n
        self.apart = []
        for layer in zip(*heard):
            x = torch.cat(layer)
            found = discriminant(str(pack.folder), DIRECTIONS, x.numpy(), np.array(labels)).scalings_
            along = torch.from_numpy(found[:, : len(known) - 1]).float()
            self.apart.append((along, (x @ along).var(0).sum()))

    @torch.no_grad()
    def _learn(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Directions [dim, n] of speech in the train split, and its variance along them."""
        clips = [c for c in pack.split("train") if c.get("vocalisation", "none") == "none" and c["frames"] > 50]
        heard, labels = [], []
        for i in np.random.default_rng(0).permutation(len(clips))[:LEARN_CLIPS]:
            at, n = clips[i]["offset"], min(clips[i]["frames"], 1000)
            said = np.array(pack.teacher[at : at + n])
            features = self.whisper(torch.from_numpy(pack.waveform(at, n))[None])[0].numpy()
            heard.append(features[said != NO_LABEL])
            labels.append(said[said != NO_LABEL])
        if not sum(map(len, labels)):
            raise ConfigError(f"reader: {pack.folder} has no teacher's labels, by which a Whisper learns what to heed; "
                              "prepare it with teacher=")  # fmt: skip
        x, y = np.concatenate(heard), np.concatenate(labels).astype(np.int64)
        found = discriminant(str(pack.folder), DIRECTIONS, x, y).scalings_[:, :DIRECTIONS]
        directions = torch.from_numpy(found).float()
        return directions, (torch.from_numpy(x) @ directions).var(0).sum()
