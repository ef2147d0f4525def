"""Shared by all tests: seeds, one thread, signals, ragged chunkings, a disk that fills up."""

from __future__ import annotations

import contextlib
import math
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor

hypothesis.settings.register_profile(
    "seeded", derandomize=True, deadline=None, database=None, max_examples=25
)
hypothesis.settings.load_profile("seeded")
pytest.register_assert_rewrite("servers", "shell", "sung")  # modules with fixtures

# a shell starts what runs in its background deaf to interrupts, and its children inherit that: tests interrupt some
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def sine(f: float, rate: int, n: int, amplitude: float = 1.0) -> Tensor:
    """Sine of f Hz, float32 [n], computed in double precision."""
    return (amplitude * torch.sin(2 * math.pi * f / rate * torch.arange(n, dtype=torch.float64))).float()


def db(power_ratio: float | Tensor) -> float:
    """10 log10 of a ratio of powers."""
    return 10 * math.log10(max(float(power_ratio), 1e-30))


def ragged(n: int, unit: int = 1, seed: int = 0) -> list[int]:
    """Random chunk sizes, whole numbers of `unit`, that add up to n; singles among them."""
    rng, sizes, left = random.Random(seed), [], n // unit
    while left:
        sizes.append(min(left, rng.choice((1, 1, 2, 3, 5, 11))))
        left -= sizes[-1]
    return [s * unit for s in sizes]


def in_chunks(module: Any, inputs: tuple[Tensor, ...], sizes: list[int], **kw: Any) -> Any:
    """`y, state = module(*chunks, state=state)` over chunks along dimension 1; the outputs, joined."""
    state, outs, at = None, [], 0
    for size in sizes:
        y, state = module(*(x[:, at : at + size] for x in inputs), state=state, **kw)
        outs.append(y)
        at += size
    return join(outs)


def join(outs: list[Any]) -> Any:
    """Concatenate equal nests of tensors along dimension 1."""
    if isinstance(outs[0], Tensor):
        return torch.cat(outs, dim=1)
    return tuple(join(list(leaf)) for leaf in zip(*outs, strict=True))


def assert_same(a: Any, b: Any, atol: float = 1e-5) -> None:
    """Integers equal, floats to atol, nests alike."""
    if isinstance(a, Tensor):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.is_floating_point():
            torch.testing.assert_close(a, b, atol=atol, rtol=0)
        else:
            assert torch.equal(a, b)
        return
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert_same(x, y, atol)


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Files refuse to grow beyond `limit` bytes, as on a full disk: the kernel itself says no (EFBIG)."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(p.name for p in folder.iterdir())
