"""A HuBERT-like model as the source encoder: k-means content, pitch and perhaps expression from a native encoder.

A unit folder holds what was fitted here (centroids, projection, the native encoder's weights) and names the
checkpoint, which stays where it is. `recipes/kmeans.py` makes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vivavoce.core.checkpoint import PretrainedModule, resolve_folder
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.core.layers import State
from vivavoce.units.hubert.centroids import Centroids
from vivavoce.units.hubert.checkpoint import Checkpoint
from vivavoce.units.hubert.encoder import SpeechEncoder
from vivavoce.units.hubert.window import Late, Sliding
from vivavoce.units.model import UnitEncoder, Units, UnitsConfig

CUDA_GROUP = 32  # windows that share a call on an accelerator


@dataclass
class HubertConfig:
    """What a unit folder's config.json says."""

    checkpoint: str  # a hub id, an absolute path, or a path seen from the unit folder
    checkpoint_sha256: str
    layer: int
    dim: int  # of the layer
    dims: int  # after projection
    content_units: int  # k
    final_proj: bool = False
    backend: str = "transformers"
    sample_rate: int = 16000  # Hz
    hop: int = 320  # samples a frame
    window: int = 0  # frames heard again at every step of a stream; 0: whole clips only, no stream
    stride: int = 1  # frames from one window to the next
    lookahead: int = 2  # frames; at least the native encoder's
    expression: bool = False  # of the native encoder; else there is none
    native: UnitsConfig = field(default_factory=UnitsConfig)

    @property
    def content_levels(self) -> list[int]:
        """None: a unit is a cluster, not several levels in one."""
        return []

    @property
    def expression_levels(self) -> list[int]:
        """Levels of each expression channel; no channel without expression."""
        return list(self.native.expression_levels) if self.expression else []


class Loaded:
    """The speech model, once there is one: not a submodule (nor to be saved, nor quantised), shared by copies."""

    encoder: SpeechEncoder | None = None

    def __deepcopy__(self, memo: dict) -> Loaded:
        return self


class HubertUnits(PretrainedModule):
    """Speech to units; interface and lag are those of `UnitEncoder`.

    The speech model is loaded with the first sound, to the device of that sound, and is no part of `state_dict`.

    Raises:
        CheckpointError: (with the first sound) a checkpoint that is missing, or not the one of the centroids.
    """

    model_type: ClassVar[str] = "vivavoce-hubert-units"
    Config: ClassVar[type] = HubertConfig

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = c = config
        late = c.lookahead - c.native.lookahead
        if late < 0:
            raise ValueError(f"lookahead {c.lookahead} is less than the native encoder's {c.native.lookahead}")
        if (c.native.sample_rate, c.native.hop) != (c.sample_rate, c.hop):
            raise ValueError(f"the native encoder's grid is not {c.sample_rate} Hz and {c.hop} samples")
        self.centroids = Centroids(c.dim, c.dims, c.content_units)
        self.native = UnitEncoder(c.native)
        self.late = Late(late)
        self.sliding = Sliding(self.hear, c.dim, c.hop, c.window, c.lookahead, c.stride) if c.window else None
        self.folder = Path()
        self._loaded = Loaded()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> HubertUnits:
        """See `PretrainedModule`; the checkpoint is not touched yet."""
        model = super().from_pretrained(folder)
        model.folder = resolve_folder(folder)
        return model

    def hear(self, x: Tensor) -> Tensor:
        """Whole clips [B, T * hop] -> features [B, T, dim], frame t centred on sample t * hop."""
        encoder = self._loaded.encoder = (self._loaded.encoder or self._load()).to(x.device)
        with torch.no_grad():
            return encoder(x)

    def _load(self) -> SpeechEncoder:
        c = self.config
        local = self.folder / c.checkpoint
        checkpoint = Checkpoint.open(local if local.is_dir() else c.checkpoint, c.sample_rate, c.hop)
        if checkpoint.sha256 != c.checkpoint_sha256:
            raise CheckpointError(f"{c.checkpoint}: not the weights that the units in {self.folder} were fitted on; "
                                  "fetch those, or fit units anew with `vivavoce train kmeans`")
        encoder = SpeechEncoder(checkpoint, c.layer, c.final_proj, c.backend).eval()
        if encoder.dim != c.dim:
            raise CheckpointError(f"{self.folder}: its centroids have {c.dim} dimensions, layer {c.layer} of "
                                  f"{c.checkpoint} has {encoder.dim}")
        return encoder

    def content(self, x: Tensor) -> Tensor:
        """Whole clips [B, T * hop] -> content units [B, T], nothing late; the offline units."""
        return self.centroids(self.hear(x))

    def spectra(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Waveform [B, T * hop] -> itself in half hops [B, 2 T, hop / 2]: what speaker-perturbed views are made of."""
        return x.unflatten(1, (-1, self.config.hop // 2)), state

    def read(self, halves: Tensor, state: State = None) -> tuple[tuple[Tensor, Tensor], State]:
        """Waveform in half hops [B, 2 T, hop / 2] -> content [B, T], expression [B, T, channels], `lookahead`
        frames late.

        Without a `window` this is for whole clips, whose last `lookahead` frames are padding and are not heard.

        Raises:
            ConfigError: a second call of a stream, without a `window`.
        """
        c, x = self.config, halves.flatten(1)
        sliding, own, late = state or (None, None, None)
        if self.sliding is not None:
            self.sliding.group = CUDA_GROUP if x.is_cuda else 1
            h, sliding = self.sliding(x, sliding)
            content = self.centroids(h)
        elif state is not None or x.shape[1] // c.hop <= c.lookahead:
            raise ConfigError(f"{self.folder}: window 0 hears whole clips and cannot stream; set `window` in its "
                              "config.json (20 to 80 frames: 0.4 to 1.6 s) and tokenise anew")
        else:
            content = self.content(x[:, : x.shape[1] - c.lookahead * c.hop])
            content = torch.nn.functional.pad(content, (c.lookahead, 0))
        expression = content.new_zeros(*content.shape, 0)
        if c.expression:
            mel, framing = self.native.spectra(x, own and own[0])
            (_, expression), trunk = self.native.read(mel, own and own[1])
            expression, late = self.late(expression, late)
            own = (framing, trunk)
        return (content, expression), (sliding, own, late)

    def pitch(self, x: Tensor, state: State = None) -> tuple[tuple[Tensor, Tensor], State]:
        """Waveform [B, T * hop] -> (F0 in Hz, periodicity), each [B, T]; see `PitchTracker`."""
        inner, late = state or (None, None)
        y, inner = self.native.pitch(x, inner)
        y, late = self.late(torch.stack(y, -1), late)
        return (y[..., 0], y[..., 1]), (inner, late)

    def forward(self, x: Tensor, state: State = None) -> tuple[Units, State]:
        """Waveform [B, T * hop] -> Units of T frames that lag `lookahead` frames behind."""
        units, pitch = state or (None, None)
        (content, expression), units = self.read(self.spectra(x)[0], units)
        (f0, periodicity), pitch = self.pitch(x, pitch)
        return Units(content, expression, f0, periodicity), (units, pitch)
