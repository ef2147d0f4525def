"""A causal source-filter codec on a 20 ms grid.

    waveform -> log-mel, level removed -> ConvNeXt encoder -> residual VQ            (codes: the envelope)
    codes + F0 + periodicity + level -> ConvNeXt decoder -> gains of pulses and noise -> inverse STFT

Frame t is cut from samples [(t-1) hop, (t+1) hop). Its level is the frame's own; its pitch is F0 and
periodicity at its leading edge (t+1) hop. Neural source-filter (Wang et al. 2019) in the frame domain,
with the differentiable harmonic-plus-noise idea of DDSP (Engel et al. 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor, nn

from vivavoce.codec.rvq import ResidualVQ
from vivavoce.codec.source import Excitation
from vivavoce.core.checkpoint import PretrainedModule
from vivavoce.core.frames import Framing, LogMel, OverlapAdd
from vivavoce.core.grid import Grid
from vivavoce.core.layers import ConvNeXtStack, State
from vivavoce.core.traced import TOGETHER, traced

LEVEL_FLOOR_DB = -65.0
DB = 20.0 / math.log(10.0)  # dB per neper


def soft_floor(level: Tensor) -> Tensor:
    """Level in dB -> the same, bending towards `LEVEL_FLOOR_DB` below it."""
    return 10.0 * torch.log10(10.0 ** (level / 10.0) + 10.0 ** (LEVEL_FLOOR_DB / 10.0))


@dataclass
class CodecConfig:
    """Shape of the codec; the defaults are the embedded model's."""

    sample_rate: int = 16000  # Hz
    hop: int = 320  # samples a frame; the window is twice that
    n_mels: int = 80
    n_codebooks: int = 8
    codebook_size: int = 1024
    code_dim: int = 64
    encoder_dim: int = 224
    encoder_depth: int = 4
    decoder_dim: int = 320
    decoder_depth: int = 6


class Codec(PretrainedModule):
    """Encode speech to codes and level; decode codes, pitch and level to speech."""

    model_type: ClassVar[str] = "vivavoce-codec"
    Config: ClassVar[type] = CodecConfig
    late: ClassVar[int] = 1  # frames by which `decode` lags behind: overlap-add
    window: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = c = config
        self.framing = Framing(2 * c.hop, c.hop)
        self.mel = LogMel(c.sample_rate, 2 * c.hop, c.n_mels)
        self.encoder = ConvNeXtStack(c.n_mels, c.encoder_dim, c.encoder_depth)
        self.to_code = nn.Linear(c.encoder_dim, c.code_dim)
        self.quantiser = ResidualVQ(c.n_codebooks, c.codebook_size, c.code_dim)
        self.decoder = ConvNeXtStack(c.code_dim + 3, c.decoder_dim, c.decoder_depth)
        self.head = nn.Linear(c.decoder_dim, 3 * (c.hop + 1))
        self.source = Excitation(c.sample_rate, c.hop)
        self.overlap = OverlapAdd(c.hop)
        self.register_buffer("window", torch.hann_window(2 * c.hop).sqrt(), persistent=False)

    @property
    def hears(self) -> tuple[int, int]:
        """Sample rate (Hz) and hop of the waveform that it encodes."""
        return self.config.sample_rate, self.config.hop

    @property
    def grid(self) -> Grid:
        """Its codes and the units beside them."""
        rate = Fraction(self.config.sample_rate, self.config.hop)
        return Grid(rate, rate)

    def begin(self, codes: Tensor) -> State:
        """The state before a stream of the voice whose prompt's codes [B, P, k] are given: none is needed."""
        return None

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def analyse(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, T, 2 hop] -> level-free log-mel [B, T, n_mels], level in dB re full scale [B, T]."""
        mel, level = self.mel(frames)
        level = soft_floor(level)
        return mel - level[..., None] / DB, level

    def level(self, frames: Tensor) -> Tensor:
        """Frames [B, T, 2 hop] -> level in dB re full scale [B, T], with a soft floor."""
        return soft_floor(self.mel.level(frames * self.mel.hann))

    def embed(self, mel: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Level-free log-mel [B, T, n_mels] -> latents before quantisation [B, T, code_dim]."""
        y, state = self.encoder(mel, state)
        return self.to_code(y), state

    def hear(self, frames: Tensor, state: State = None) -> tuple[tuple[Tensor, Tensor], State]:
        """Frames [B, T, 2 hop] -> (latents before quantisation [B, T, code_dim], level dB [B, T]), state: what `embed`
        and `analyse` make."""
        if state is None or frames.shape[1] > TOGETHER:
            return self._hear(frames, state)
        return traced(self, self._hear, ("hear", *frames.shape), frames, state)

    def _hear(self, frames: Tensor, state: State) -> tuple[tuple[Tensor, Tensor], State]:
        mel, level = self.analyse(frames)
        z, state = self.embed(mel, state)
        return (z, level), state

    def encode(self, x: Tensor, state: State = None) -> tuple[tuple[Tensor, Tensor], State]:
        """Waveform [B, T * hop] -> (codes [B, T, n_codebooks], level dB [B, T]), state."""
        framing, encoder = state or (None, None)
        frames, framing = self.framing(x, framing)
        (z, level), encoder = self._hear(frames, encoder)
        return (self.quantiser.encode(z), level), (framing, encoder)

    def forward(self, wave: Tensor, f0: Tensor, periodicity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass with quantiser dropout: waveform (a hop late), commitment loss, code perplexity."""
        frames, _ = self.framing(wave)
        mel, level = self.analyse(frames)
        z, _ = self.embed(mel)
        zq, commit, perplexity = self.quantiser(z)
        y, _ = self.synthesise(zq, f0, periodicity, level)
        return y, commit, perplexity

    def decode(
        self, codes: Tensor, f0: Tensor, periodicity: Tensor, level: Tensor, state: State = None, seed: int = 0
    ) -> tuple[Tensor, State]:
        """Codes [B, T, k] (or weights of codes [B, T, k, codebook_size], whose vectors are mixed, or vectors [B, T,
        code_dim]), F0 (Hz), periodicity (0 to 1) and level (dB), each [B, T] -> waveform [B, T * hop].

        The waveform lags by one hop: the first hop samples of a stream precede it (see OverlapAdd).
        """
        if state is None or codes.shape[1] > TOGETHER:
            return self._decode(codes, f0, periodicity, level, state, seed)
        key = "decode", *codes.shape
        return traced(self, self._decode, key, codes, f0, periodicity, level, state, torch.tensor(seed))

    def _decode(
        self, codes: Tensor, f0: Tensor, periodicity: Tensor, level: Tensor, state: State, seed: int | Tensor
    ) -> tuple[Tensor, State]:
        z = codes if codes.is_floating_point() and codes.ndim == 3 else self.quantiser.decode(codes)
        return self.synthesise(z, f0, periodicity, level, state, seed)

    def gains(
        self, z: Tensor, f0: Tensor, periodicity: Tensor, level: Tensor, state: State = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], State]:
        """Quantised latents z [B, T, code_dim] and what goes with them -> log gain and phase of the pulses and log gain
        of the noise, at unit level, [B, T, hop + 1] each."""
        octaves = torch.log2(f0.clamp(30.0, 2000.0) / 200.0)
        extra = torch.stack((octaves * periodicity, periodicity, (level + 40.0) / 20.0), dim=-1)
        y, state = self.decoder(torch.cat((z, extra.to(z.dtype)), dim=-1), state)
        log_h, phase, log_n = self.head(y).float().chunk(3, dim=-1)
        return (log_h.clamp(-12, 6), phase, log_n.clamp(-12, 6)), state

    def envelope(self, z: Tensor, f0: Tensor, periodicity: Tensor, level: Tensor) -> Tensor:
        """What `synthesise` would make of z, as a log-mel spectrum at unit level [B, T, n_mels], in nepers; nothing is
        synthesised."""
        (log_h, _, log_n), _ = self.gains(z, f0, periodicity, level)
        power = (periodicity[..., None] * log_h.exp()).square() + (2.0 * log_n).exp()
        return 0.5 * torch.log((power @ self.mel.bank).clamp_min(1e-8))

    def synthesise(
        self, z: Tensor, f0: Tensor, periodicity: Tensor, level: Tensor, state: State = None, seed: int | Tensor = 0
    ) -> tuple[Tensor, State]:
        """`decode` from quantised latents z [B, T, code_dim]."""
        decoder, source, tail, overlap = state or (None, None, None, None)
        (log_h, phase, log_n), decoder = self.gains(z, f0, periodicity, level, decoder)
        gain = (10.0 ** (level / 20.0))[..., None]
        harmonic = torch.polar(gain * periodicity[..., None] * torch.exp(log_h), phase)
        noisy = gain * torch.exp(log_n)
        pulses, noise, source = self.source(f0, seed, source)
        both = torch.stack((pulses, noise), dim=1)  # [B, 2, T * hop]
        frames, tail = self.framing(both.flatten(0, 1), tail)
        spectra = torch.fft.rfft(frames * self.window).unflatten(0, (f0.shape[0], 2))
        frames = torch.fft.irfft(spectra[:, 0] * harmonic + spectra[:, 1] * noisy, n=2 * self.config.hop)
        wave, overlap = self.overlap(frames * self.window, overlap)
        return wave, (decoder, source, tail, overlap)
