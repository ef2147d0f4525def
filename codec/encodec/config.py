"""Shapes of EnCodec models. The defaults are the official 24 kHz model; `OFFICIAL` holds both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from vivavoce.core.errors import ConfigError

KERNEL = 7  # of the first and the last convolution of encoder and decoder
RESIDUAL_KERNEL = 3
DILATION_BASE = 2  # of residual layer j: DILATION_BASE ** j
COMPRESS = 2  # channels in a residual branch: a half


@dataclass
class EncodecConfig:
    """Shape of an EnCodec model.

    Attributes:
        ratios: strides of the decoder, in its order; the encoder has them reversed.
        n_filters: channels after the first convolution; they double at each stride.
        dimension: of the latents and codebook vectors.
        causal: past context only, weights normalised by weight norm (folded here); else GroupNorm, no streaming.
        normalise: divide each segment by its loudness, which then travels beside the codes.
        segment_seconds, overlap: long audio is cut into segments that overlap by this share; None: not cut.
    """

    sample_rate: int = 24000  # Hz
    channels: int = 1
    bandwidths: list[float] = field(default_factory=lambda: [1.5, 3.0, 6.0, 12.0, 24.0])  # kbit/s
    ratios: list[int] = field(default_factory=lambda: [8, 5, 4, 2])
    n_filters: int = 32
    residual_layers: int = 1
    lstm_layers: int = 2
    dimension: int = 128
    n_codebooks: int = 32
    codebook_size: int = 1024
    causal: bool = True
    normalise: bool = False
    segment_seconds: float | None = None
    overlap: float = 0.01

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> int:
        """Frames a second, rounded up as EnCodec counts them."""
        return math.ceil(self.sample_rate / self.hop)

    @property
    def segment(self) -> int | None:
        """Samples of a segment."""
        return None if self.segment_seconds is None else int(self.segment_seconds * self.sample_rate)

    @property
    def stride(self) -> int | None:
        """Samples from one segment's start to the next."""
        return None if self.segment is None else max(1, int((1 - self.overlap) * self.segment))

    def codebooks(self, bandwidth: float | None) -> int:
        """Codebooks used at a bandwidth in kbit/s; all of them for None.

        Raises:
            ConfigError: a bandwidth that the model was not trained for.
        """
        if bandwidth is None:
            return self.n_codebooks
        if bandwidth not in self.bandwidths:
            known = ", ".join(f"{b:g}" for b in self.bandwidths)
            raise ConfigError(f"bandwidth {bandwidth:g} kbit/s: this EnCodec model has {known}")
        each = math.log2(self.codebook_size) * self.frame_rate / 1000
        return min(self.n_codebooks, max(1, math.floor(bandwidth / each)))


OFFICIAL = {
    "24khz": EncodecConfig(),
    "48khz": EncodecConfig(sample_rate=48000, channels=2, bandwidths=[3.0, 6.0, 12.0, 24.0], n_codebooks=16,
                           causal=False, normalise=True, segment_seconds=1.0),
}  # fmt: skip
