"""A step of a stream as one graph: TorchScript traces of what a live stream calls up to fifty times a second.

For a frame or a few Python spends more time between the kernels than the kernels take. A trace runs the same kernels
without Python, so its outputs are the same, bit for bit (tests/test_traced.py), and it needs no compiler.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

TOGETHER = 8  # frames of 20 ms, at most, that a stream computes at once, and that a graph is made for
WARM_UP = 3  # calls until TorchScript has profiled a graph and settled how to run it

_Graphs = dict[Hashable, Callable | None]  # None: it cannot be traced here
_graphs: WeakKeyDictionary[nn.Module, _Graphs] = WeakKeyDictionary()
_lock = threading.Lock()
_off = contextvars.ContextVar("traces off", default=False)


def traced(module: nn.Module, call: Callable[..., Any], key: Hashable, *args: Any) -> Any:
    """`call(*args)`, by a graph of it that is made at the first call.

    Args:
        module: whose weights `call` uses; its graphs live as long as it does.
        call: a function of tensors and (nested) tuples of tensors alone that takes no decision by their values.
        key: all else that `call` depends on, the shapes that matter to it included: a graph for each.

    On other devices than a CPU, in training, outside inference mode and where PyTorch cannot trace, `call` itself runs.
    """
    if _off.get() or module.training or not torch.is_inference_mode_enabled():
        return call(*args)
    graphs = _graphs.get(module)
    if graphs is None or key not in graphs:
        graphs = _trace(module, call, key, args)
    return (graphs[key] or call)(*args)


@contextlib.contextmanager
def eager(when: bool = True) -> Iterator[None]:
    """No traces in this block and thread: to compare, and for shapes that come once."""
    token = _off.set(when or _off.get())
    try:
        yield
    finally:
        _off.reset(token)


class _Call(nn.Module):
    """What `torch.jit.trace` wants: the weights below the call."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self._call = call

    def forward(self, *args: Any) -> Any:
        return self._call(*args)


def _trace(module: nn.Module, call: Callable[..., Any], key: Hashable, args: tuple) -> _Graphs:
    with _lock, warnings.catch_warnings():
        graphs = _graphs.setdefault(module, {})
        if key not in graphs:
            warnings.simplefilter("ignore")  # shapes are constants here, and meant to be
            try:
                if any(p.device.type != "cpu" for p in module.parameters()):
                    raise RuntimeError("not measured elsewhere")
                graph = torch.jit.trace(_Call(module, call).eval(), _cloned(args), check_trace=False)
                graph = torch.jit.freeze(graph)
                for _ in range(WARM_UP):
                    graph(*_cloned(args))  # clones: a call may write into its state
            except RuntimeError:
                graph = None
            graphs[key] = graph
        return graphs


def _cloned(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    return type(x)(*map(_cloned, x)) if hasattr(x, "_fields") else tuple(map(_cloned, x))
