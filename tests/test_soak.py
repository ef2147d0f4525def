"""A stream that goes on: twenty seconds in the ordinary suite, ten minutes where tests run alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import vivavoce
from vivavoce.bench import resident_mb
from vivavoce.changer import Changer

RATE = 16000


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Changer:
    return vivavoce.load(tiny.build(tmp_path_factory.mktemp("model")), threads=2)


def size_of(state: Any) -> int:
    """Bytes of all tensors in a nest, plus one for each other leaf."""
    if isinstance(state, Tensor):
        return state.untyped_storage().nbytes()
    return sum(map(size_of, state)) if isinstance(state, (tuple, list)) else 1


def day(second: int) -> Tensor:
    """What happens in a second: speech of changing pitch, now and then silence or a shout."""
    rng = random.Random(second)
    x = tiny.voiced(1.0, RATE, f0=rng.choice((90.0, 130.0, 210.0, 330.0)), seed=second % 7)
    return x * rng.choice((0.0, 0.05, 1.0, 1.0, 3.0))


@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=pytest.mark.realtime)])
def test_as_good_at_the_end_as_at_the_start(changer: Changer, seconds: int) -> None:
    """In ragged chunks and second by second: the same bits to the end; state and memory stay as they are."""
    ragged, plain = (changer.stream("ada", RATE, temperature=1.0) for _ in range(2))
    rng, sizes, memory, rest = random.Random(0), [], [], (torch.zeros(0), torch.zeros(0))
    for second in range(seconds):
        x, at, out = day(second), 0, []
        while at < RATE:
            n = rng.choice((1, 320, 1764, 5000, 16000))
            out.append(ragged.push(x[at : at + n]))
            at += n
        rest = (torch.cat((rest[0], *out)), torch.cat((rest[1], plain.push(x))))
        n = min(map(len, rest))
        assert torch.equal(rest[0][:n], rest[1][:n]), second
        rest = (rest[0][n:], rest[1][n:])
        sizes.append(size_of(ragged.snapshot()))
        memory.append(resident_mb())
    assert torch.equal(torch.cat((rest[0], ragged.flush())), torch.cat((rest[1], plain.flush())))
    assert max(sizes[5:]) <= 1.02 * max(sizes[:5]), sizes
    assert memory[-1] - memory[seconds // 4] < 8.0, memory  # MB: a leak of 1 KB a frame would be 22 a ten minutes
