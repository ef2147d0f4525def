"""Push/pull EnCodec: any number of samples in, codes out, and back.

Blocks of `block` frames are computed, each in the same shapes, whatever the caller's chunks are: any chunking gives
the same codes and the same samples, bit for bit. They are those of the offline call, up to ties: PyTorch's kernels
round differently for other lengths, in the last bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vivavoce.codec.encodec.model import Encodec
from vivavoce.core.errors import AudioError, ConfigError
from vivavoce.core.layers import State


class EncodecLatency(NamedTuple):
    """Delay in ms: of the first output of a stream, and of each block after it."""

    start: float
    block: float


class _Stream:
    def __init__(self, codec: Encodec, lead: bool, block: int) -> None:
        if block < 1:
            raise ConfigError(f"block {block}: a stream computes 1 frame at a time or more")
        self.codec, self.block, self._lead = codec, block, lead

    @property
    def latency(self) -> EncodecLatency:
        """From a sample (or code) going in to what it became coming out, at worst. A frame is 13.3 ms; without a lead,
        the first seven come together, because the last and the first convolution reflect what they start with."""
        block = 1000.0 * self.block * self.codec.config.hop / self.codec.config.sample_rate
        return EncodecLatency(block if self._lead else block * math.ceil(self.codec.warm_up / self.block), block)

    def _check_open(self) -> None:
        if not self._open:
            raise AudioError("the stream was flushed; call reset() to begin another")

    _open = True


class EncodecEncoderStream(_Stream):
    """Samples to codes.

    Args:
        bandwidth: kbit/s; None takes all codebooks.
        lead_in: hear seven frames of silence beforehand (their codes are not given out), so that every frame comes as
            soon as its samples are in. Codes are then those of the recording with that silence before it.
        block: frames computed at a time: three (40 ms) at once take about six tenths of what they take one by one.

    Raises:
        ConfigError: a bandwidth that the model does not have, or a model that does not stream.
    """

    def __init__(self, codec: Encodec, bandwidth: float | None = None, lead_in: bool = False,
                 block: int = 1) -> None:  # fmt: skip
        super().__init__(codec, lead_in, block)
        self.bandwidth = bandwidth
        self.reset()

    def reset(self) -> None:
        """Back to the beginning of a stream."""
        self._state: State = None
        self._rest = torch.zeros(0, dtype=next(self.codec.parameters()).dtype)
        self._open = True
        self._step(self._rest)  # what the model cannot do shows itself now
        if self._lead:
            for _ in range(self.codec.warm_up):
                self._step(torch.zeros(self.codec.config.hop, dtype=self._rest.dtype))

    def push(self, samples: Tensor) -> Tensor:
        """Take any number of samples [n]; return the codes [T, K] of the frames that are ready.

        Raises:
            AudioError: NaN or infinite samples (nothing is taken), a wrong shape, or a flushed stream.
        """
        self._check_open()
        x = torch.as_tensor(samples)
        if x.ndim != 1:
            raise AudioError(f"push takes mono samples of shape [n], got {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            raise AudioError("NaN or infinite samples in the stream")
        x = torch.cat((self._rest, x.to(self._rest)))
        size = self.block * self.codec.config.hop
        whole = len(x) // size * size
        self._rest = x[whole:].clone()
        parts = [self._step(part) for part in x[:whole].split(size)] if whole else []
        return torch.cat(parts) if parts else self._none()

    def flush(self) -> Tensor:
        """End the stream: codes [T, K] of what is left, the last frame filled up as EnCodec does it."""
        if not self._open:
            return self._none()
        self._open = False
        return self._step(self._rest, last=True)

    def _step(self, x: Tensor, last: bool = False) -> Tensor:
        codes, self._state = self.codec.encode_stream(x[None], self._state, last, self.bandwidth)
        return codes[0]

    def _none(self) -> Tensor:
        return torch.zeros(0, self.codec.config.codebooks(self.bandwidth), dtype=torch.int64)


class EncodecDecoderStream(_Stream):
    """Codes to samples.

    Args:
        before: codes [P, K] of seven frames or more that precede the stream (of silence, of a voice); their sound is
            not given out, but the decoder is warm then, and every frame is heard at once.
        block: frames computed at a time.

    Raises:
        ConfigError: a model that does not stream.
        AudioError: too few frames before.
    """

    def __init__(self, codec: Encodec, before: Tensor | None = None, block: int = 1) -> None:
        super().__init__(codec, before is not None, block)
        if before is not None and len(before) < codec.warm_up:
            raise AudioError(f"{len(before)} frames before the stream are too few to warm up with; "
                             f"give {codec.warm_up} or more")
        self._before = before
        self.reset()

    def reset(self) -> None:
        """Back to the beginning of a stream."""
        self._state: State = None
        self._rest = torch.zeros(0, 1, dtype=torch.int64)
        self._open = True
        self._step(self._rest if self._before is None else self._before)

    def push(self, codes: Tensor) -> Tensor:
        """Take codes [T, K] of any number of frames; return the samples [n] that are ready.

        Raises:
            AudioError: a wrong shape, a code that is not in its codebook, or a flushed stream.
        """
        self._check_open()
        c = self.codec.config
        if codes.ndim != 2 or not 0 < codes.shape[1] <= c.n_codebooks:
            raise AudioError(f"push takes codes of shape [frames, 1 to {c.n_codebooks}], got {tuple(codes.shape)}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < c.codebook_size:
            raise AudioError(f"codes must be 0 to {c.codebook_size - 1}, got {int(codes.min())} to {int(codes.max())}")
        codes = torch.cat((self._rest, codes.long())) if len(self._rest) else codes.long()
        whole = len(codes) // self.block * self.block
        self._rest = codes[whole:].clone()
        parts = [self._step(part) for part in codes[:whole].split(self.block)] if whole else []
        return torch.cat(parts) if parts else torch.zeros(0, dtype=next(self.codec.parameters()).dtype)

    def flush(self) -> Tensor:
        """End the stream: the samples of frames that did not fill a block, or were too few to begin with."""
        if not self._open:
            return torch.zeros(0, dtype=next(self.codec.parameters()).dtype)
        self._open = False
        return self._step(self._rest, last=True)

    def _step(self, codes: Tensor, last: bool = False) -> Tensor:
        y, self._state = self.codec.decode_stream(codes[None], self._state, last)
        return y[0]
