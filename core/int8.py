"""Linear layers with int8 weights, for a frame or a few at a time on a CPU.

At batch 1 a layer's time is the time to read its weights; an int8 layer reads a quarter of them. Inputs are
quantised on the fly with one scale a call: the frames of a step share it.
"""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
# Without VNNI, x86 adds pairs of products in 16 bits, where 8-bit inputs overflow: they get 7.
SEVEN_BITS = not getattr(torch.cpu, "_is_vnni_supported", bool)()


class Int8Linear(nn.Module):
    """A frozen nn.Linear: int8 weights with a scale for each output, inputs of 8 bits (7: `SEVEN_BITS`)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        w = linear.weight.detach().float()
        scale = (w.abs().amax(1) / 127.0).clamp_min(1e-8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "deprecated": the range of PyTorch releases we allow still has it
            zero = torch.zeros(len(w), dtype=torch.int64)
            quantised = torch.quantize_per_channel(w, scale, zero, 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(quantised, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], float32."""
        return torch.ops.quantized.linear_dynamic(x, self._packed, SEVEN_BITS)


def available() -> bool:
    """Whether this build of PyTorch has int8 kernels for this processor."""
    return torch.backends.quantized.engine not in ("", "none")


def int8(module: M) -> M:
    """A copy of `module` for inference on the CPU whose linear layers are int8; all else is as it was."""
    out = copy.deepcopy(module).eval()
    for parent in list(out.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.in_features:  # a stream without expression feeds a layer of none
                setattr(parent, name, Int8Linear(child))
    return out
