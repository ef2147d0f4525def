"""Streaming for what does not stream: hear the last stretch again at every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vivavoce.core.layers import State


class Sliding(nn.Module):
    """`y, state = sliding(x, state)` around an encoder of whole clips.

    Every `stride` frames the last `window` frames (at the start of a stream: all so far) are encoded as if they were
    a clip, and of the result the frames that have just come into reach are kept: those with at least
    `lookahead - stride + 1` frames after them. Outputs come one a frame, `lookahead` frames late; before the first
    there are zeros. Where windows lie depends on the frames heard alone, so any chunking gives the same.

    Args:
        encode: waveform [B, T * hop] -> [B, T, dim].
        window: frames.
        stride: frames from one window to the next; work is in proportion to window / stride.
        lookahead: frames.
        group: windows of equal length that one call may encode together. On a CPU only 1 gives the same bits in
            any chunking.

    Raises:
        ValueError: numbers that leave a window nothing to keep.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], dim: int, hop: int, window: int, lookahead: int,
                 stride: int = 1, group: int = 1) -> None:  # fmt: skip
        super().__init__()
        if stride < 1 or lookahead < stride - 1 or window <= lookahead:
            raise ValueError(f"a window of {window} frames, every {stride}, cannot speak {lookahead} frames late: "
                             "it takes stride >= 1, lookahead >= stride - 1 and window > lookahead")
        self.encode, self.dim, self.hop = encode, dim, hop
        self.window, self.lookahead, self.stride, self.group = window, lookahead, stride, group

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Waveform [B, T * hop] -> [B, T, dim]; state: frames heard, samples [B, <= window * hop], what is ready."""
        if x.shape[1] % self.hop:
            raise ValueError(f"{x.shape[1]} samples are not a whole number of {self.hop}-sample frames")
        heard, past, ready = state or (0, x[:, :0], ())
        x, have = torch.cat((past, x), dim=1), past.shape[1] // self.hop
        ends = range(have + 1, x.shape[1] // self.hop + 1)  # of windows, in frames of x
        since = heard - have  # frames that x no longer holds
        fresh: dict[int, tuple[Tensor, ...]] = {}
        for alike in self._alike([e for e in ends if (since + e) % self.stride == 0]):
            clips = torch.cat([x[:, max(0, e - self.window) * self.hop : e * self.hop] for e in alike])
            for e, y in zip(alike, self.encode(clips).chunk(len(alike))):
                fresh[e] = self._due(y, since + e).unbind(1)
        queue, out = list(ready), []
        for e in ends:
            queue += fresh.get(e, ())
            out.append(queue.pop(0) if queue else x.new_zeros(x.shape[0], self.dim))
        y = torch.stack(out, 1) if out else x.new_zeros(x.shape[0], 0, self.dim)
        return y, (since + ends.stop - 1, x[:, max(0, ends.stop - 1 - self.window) * self.hop :], tuple(queue))

    def _alike(self, ends: list[int]) -> list[list[int]]:
        """Window ends in groups that share a length."""
        groups: list[list[int]] = []
        for e in ends:
            full = bool(groups) and min(groups[-1][0], self.window) == min(e, self.window)
            if full and len(groups[-1]) < self.group:
                groups[-1].append(e)
            else:
                groups.append([e])
        return groups

    def _due(self, y: Tensor, heard: int) -> Tensor:
        """Of a window's frames [B, w, dim], the last of them frame `heard` - 1, the `stride` that are due."""
        first = heard - self.lookahead - 1
        silent = y.new_zeros(y.shape[0], min(self.stride, max(0, -first)), self.dim)
        at, before = first + silent.shape[1], heard - y.shape[1]  # `before`: frames older than the window
        return torch.cat((silent, y[:, at - before : first + self.stride - before]), dim=1)


class Late(nn.Module):
    """Hold frames [B, T, ...] back by `frames`; before the first there are zeros."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = x.new_zeros(x.shape[0], self.frames, *x.shape[2:])
        x = torch.cat((state, x), dim=1)
        cut = x.shape[1] - self.frames
        return x[:, :cut], x[:, cut:]
