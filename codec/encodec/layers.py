"""SEANet's layers as streams: `y, state = layer(x, state, last)`, x of shape [batch, channels, time].

`state=None` starts a stream, `last=True` ends it; both at once is the offline computation, in the same operations
as the reference's. The reference pads every call with a reflection of its first samples: here a stream waits for
the few inputs that the reflection needs (`left + 1`), is padded once, and then gives out what is ready. The end is
padded so that the last window is whole, when `last` says that it is the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codec.encodec.config import COMPRESS, DILATION_BASE, RESIDUAL_KERNEL
from vivavoce.core.layers import State

FEW = 32  # frames, up to which a stream computes by matrix product and by hand what has a kernel of its own: on a CPU
# those kernels lay out their weights anew at each call, which costs more than the work itself


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Reflection padding that first appends zeros where x is too short to be reflected, and cuts them off again."""
    if not (left or right):
        return x
    short = max(0, max(left, right) + 1 - x.shape[-1])
    y = F.pad(F.pad(x, (0, short)), (left, right), "reflect")
    return y[..., : y.shape[-1] - short]


def norm_of(channels: int, causal: bool) -> nn.Module:
    """GroupNorm over channels and time in the models that are not causal."""
    return nn.Identity() if causal else nn.GroupNorm(1, channels)


class Conv(nn.Module):
    """Convolution that keeps time: ceil(T / stride) outputs for T inputs. State: (inputs still needed, padded yet)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, dilation: int = 1,
                 causal: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv1d(c_in, c_out, kernel, stride, dilation=dilation)
        self.norm = norm_of(c_out, causal)
        self.stride, self.span = stride, (kernel - 1) * dilation + 1
        total = self.span - stride
        self.right = 0 if causal else total // 2
        self.left = total - self.right

    def forward(self, x: Tensor, state: State = None, last: bool = False) -> tuple[Tensor, State]:
        held, begun = state or (x[..., :0], False)
        x = torch.cat((held, x), dim=-1)
        n = x.shape[-1]
        if not begun:
            if last and n:
                x = reflect(x, self.left, self.right + -n % self.stride)
            elif n > self.left:
                x, begun = reflect(x, self.left, 0), True
            if not (begun or last) or not n:
                return self._none(x), (x, False)
        elif last:
            x = reflect(x, 0, (self.span - n) % self.stride)
        windows = max(0, (x.shape[-1] - self.span) // self.stride + 1)
        if not windows:
            y = self._none(x)
        elif begun and windows <= FEW and self.conv.dilation == (1,):
            y = F.linear(x.unfold(-1, self.span, self.stride).transpose(1, 2).flatten(2),
                         self.conv.weight.flatten(1), self.conv.bias).transpose(1, 2)  # fmt: skip
        else:
            y = self.norm(self.conv(x))
        return y, (x[..., windows * self.stride :].clone(), True)

    def _none(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.conv.out_channels, 0)


class TransposedConv(nn.Module):
    """Upsampling by `stride` with a kernel of twice that. State: what the last input adds to the outputs to come,
    without the bias, which every output gets once."""

    def __init__(self, c_in: int, c_out: int, stride: int, causal: bool = True) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(c_in, c_out, 2 * stride, stride)
        self.norm = norm_of(c_out, causal)
        self.stride, self.causal = stride, causal

    def forward(self, x: Tensor, state: State = None, last: bool = False) -> tuple[Tensor, State]:
        if not self.causal:
            right = self.stride // 2
            y = self.norm(self.conv(x))
            return y[..., self.stride - right : y.shape[-1] - right], None
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.conv.out_channels, 0), state
        assert self.conv.bias is not None
        y = x.transpose(1, 2) @ self.conv.weight.flatten(1)  # each input's own outputs, [B, T, C_out * 2 stride]
        now, after = y.unflatten(2, (-1, 2, self.stride)).unbind(3)
        before = torch.zeros_like(after[:, 0]) if state is None else state
        y = now + torch.cat((before[:, None], after[:, :-1]), dim=1)  # [B, T, C_out, stride]
        return y.transpose(1, 2).flatten(2) + self.conv.bias[:, None], after[:, -1].clone()


class LSTM(nn.Module):
    """Stacked LSTM around which the input is added. State: its (h, c)."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)

    def forward(self, x: Tensor, state: State = None, last: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x, state
        t = x.permute(2, 0, 1)
        offline = state is None and last
        y, state = self.lstm(t, state) if offline or len(t) > FEW else self._cells(t, state)
        return (y + t).permute(1, 2, 0), state

    def _cells(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The same by hand."""
        if state is None:
            zeros = x.new_zeros(self.lstm.num_layers, x.shape[1], self.lstm.hidden_size)
            state = (zeros, zeros)
        hs, cs = [], []
        for h, c, (w_in, w_rec, b_in, b_rec) in zip(*state, self.lstm.all_weights):
            out = []
            for gates in F.linear(x, w_in, b_in + b_rec):
                i, f, g, o = (gates + F.linear(h, w_rec)).chunk(4, dim=-1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                out.append(h)
            x = torch.stack(out)
            hs.append(h)
            cs.append(c)
        return x, (torch.stack(hs), torch.stack(cs))


class Residual(nn.Module):
    """Two convolutions beside one of kernel 1. State: those of the two, and what the shortcut is ahead by while
    the first waits for its reflection."""

    def __init__(self, channels: int, layer: int, causal: bool) -> None:
        super().__init__()
        c, hidden = channels, channels // COMPRESS
        first = Conv(c, hidden, RESIDUAL_KERNEL, dilation=DILATION_BASE**layer, causal=causal)
        self.block = nn.Sequential(nn.ELU(), first, nn.ELU(), Conv(hidden, c, 1, causal=causal))
        self.shortcut = Conv(c, c, 1, causal=causal)

    def forward(self, x: Tensor, state: State = None, last: bool = False) -> tuple[Tensor, State]:
        inner, ahead = state or (None, None)
        y, inner = chain(self.block, x, inner, last)
        z, _ = self.shortcut(x, None, True) if x.shape[-1] else (y[..., :0], None)
        if ahead is not None:
            z = torch.cat((ahead, z), dim=-1)
        n = y.shape[-1]
        return z[..., :n] + y, (inner, z[..., n:].clone())


def chain(layers: nn.Sequential, x: Tensor, state: State = None, last: bool = False) -> tuple[Tensor, State]:
    """Run layers one after another, each with its state; those that have none (ELU) keep ()."""
    states: list[State] = []
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.ELU):
            x, s = layer(x), ()
        else:
            x, s = layer(x, None if state is None else state[i], last)
        states.append(s)
    return x, tuple(states)
