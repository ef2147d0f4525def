"""EnCodec in the place of the changer's own codec: hears 16 kHz beside the units, speaks 24 kHz, 75 codes a second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codec.encodec.config import EncodecConfig
from vivavoce.codec.encodec.model import Encodec
from vivavoce.codec.encodec.rvq import ResidualVQ
from vivavoce.codec.model import CodecConfig, soft_floor
from vivavoce.core.errors import ConfigError
from vivavoce.core.frames import Framing, LogMel
from vivavoce.core.grid import Grid
from vivavoce.core.layers import State
from vivavoce.core.resample import resample


class EncodecVoice(nn.Module):
    """What engine and recipes ask of a codec (see `Codec`), of EnCodec.

    Its codes carry pitch and level, so those that `decode` is given are not used; the level of the source's frames is
    measured as `Codec` does it, for the language model. Raises ConfigError for a model that cannot stream.
    """

    late = 0  # unit frames by which `decode` lags behind
    hears = (CodecConfig.sample_rate, CodecConfig.hop)  # Hz, samples of a unit frame: those of the units, not its own

    def __init__(self, model: Encodec) -> None:
        super().__init__()
        if not model.config.causal or model.config.channels != 1:
            raise ConfigError("this EnCodec model cannot stream; a voice changer needs the causal mono one (24 kHz)")
        self.model = model
        rate, hop = self.hears
        self.grid = Grid(Fraction(rate, hop), Fraction(self.config.sample_rate, self.config.hop))
        self.framing = Framing(2 * hop, hop)
        self.mel = LogMel(rate, 2 * hop, n_mels=1)

    @property
    def config(self) -> EncodecConfig:
        """The model's own."""
        return self.model.config

    @property
    def quantiser(self) -> ResidualVQ:
        """The model's own."""
        return self.model.quantiser

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the EnCodec model, always as it is: rounded weights would give other codes."""
        self.model.save_pretrained(folder)

    def level(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 640] of 16 kHz -> level in dB re full scale [B, T]."""
        return soft_floor(self.mel.level(frames * self.mel.hann))

    @torch.no_grad()
    def encode(self, x: Tensor, state: None = None) -> tuple[tuple[Tensor, Tensor], State]:
        """16 kHz waveform [B, T * 320] -> (codes [B, grid.codes(T), K], level [B, T]), None.

        For whole recordings: it is a voice or a corpus that is encoded, not a live source. The last frame is filled up
        with zeros, and nothing above 8 kHz is in the codes.
        """
        frames, _ = self.framing(x)
        n = self.grid.codes(frames.shape[1]) * self.config.hop
        y = resample(x, self.hears[0], self.config.sample_rate)
        return (self.model.encode(F.pad(y, (0, n - y.shape[1]))), self.level(frames)), None

    def decode(
        self, codes: Tensor, f0: Tensor, periodicity: Tensor, level: Tensor, state: State = None, seed: int = 0
    ) -> tuple[Tensor, State]:
        """Codes [B, T, k] (or weights of codes) -> waveform [B, T * hop] at the codec's rate; without a state, not
        before seven frames."""
        return self.model.decode_stream(codes, state)

    def begin(self, codes: Tensor) -> State:
        """The state after codes [B, P, k], a voice prompt's: what follows is heard without a wait."""
        few = -(-self.model.warm_up // codes.shape[1])
        return self.model.decode_stream(codes.repeat(1, few, 1))[1]
