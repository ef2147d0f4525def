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
