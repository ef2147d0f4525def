"""Streaming layers. All of them: `y, state = layer(x, state)`, x of shape [batch, frames, channels].

`state=None` starts a stream; states are (nested) tuples of tensors; nothing is kept on the module. Any
chunking of the same input gives the same output.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.traced import TOGETHER

State = Any


class CausalConv1d(nn.Module):
    """Causal convolution over frames; the past before a stream is zeros.

    State: the last `(kernel_size - 1) * dilation` inputs, [B, P, C_in].
    """

    def __init__(self, c_in: int, c_out: int, kernel_size: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel_size, dilation=dilation, groups=groups)
        self.past = (kernel_size - 1) * dilation
        self.depthwise = groups == c_in == c_out and dilation == 1

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = x.new_zeros(x.shape[0], self.past, x.shape[2])
        window = torch.cat((state, x), dim=1)
        state = window[:, window.shape[1] - self.past :]
        if self.depthwise:  # shifted multiply-adds: about 1.5 times conv1d's speed on a CPU
            w, t = self.conv.weight[:, 0].T.to(x.dtype), x.shape[1]
            assert self.conv.bias is not None
            if 0 < t <= TOGETHER:  # a live step: few operations count for more than few multiplications
                windows = window.unfold(1, w.shape[0], 1).transpose(2, 3)
                return (windows * w).sum(2) + self.conv.bias.to(x.dtype), state
            y = self.conv.bias.to(x.dtype) + window[:, :t] * w[0]
            for k in range(1, w.shape[0]):
                y = torch.addcmul(y, window[:, k : k + t], w[k])
            return y, state
        return self.conv(window.transpose(1, 2)).transpose(1, 2), state


class ConvNeXt(nn.Module):
    """Causal ConvNeXt block (Liu et al. 2022, 1-D as in Vocos): depthwise conv, norm, MLP, residual."""

    def __init__(self, dim: int, kernel_size: int = 7, expansion: int = 3, scale: float = 0.2) -> None:
        super().__init__()
        self.conv = CausalConv1d(dim, dim, kernel_size, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, dim * expansion)
        self.down = nn.Linear(dim * expansion, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.conv(x, state)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y)), approximate="tanh")), state


class ConvNeXtStack(nn.Module):
    """`depth` ConvNeXt blocks between an input projection and a final norm. State: one per block."""

    def __init__(self, c_in: int, dim: int, depth: int, kernel_size: int = 7, expansion: int = 3) -> None:
        super().__init__()
        self.inp = nn.Linear(c_in, dim)
        self.blocks = nn.ModuleList(
            ConvNeXt(dim, kernel_size, expansion, scale=1.0 / depth) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        x = self.inp(x)
        states = []
        for i, block in enumerate(self.blocks):
            x, s = block(x, None if state is None else state[i])
            states.append(s)
        return self.norm(x), tuple(states)
