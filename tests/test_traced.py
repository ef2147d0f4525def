"""Frames that run as TorchScript graphs: the same bits as without, and made once."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from tiny import voiced
from torch import nn

import vivavoce
from vivavoce.core import traced
from vivavoce.core.traced import eager
from vivavoce.engine import Settings


@pytest.fixture(scope="module", params=("int8", "float32"))
def changer(request):
    return vivavoce.load(precision=request.param)


@pytest.mark.parametrize("options", ({}, {"guidance": 0.0, "temperature": 0.0}, {"delay": 0, "seed": 7, "context": 20}))
def test_same_bits_as_eager(changer, options):
    settings, x = Settings(**options), voiced(1.2)
    out = []
    for context in (eager(), torch.inference_mode()):
        with context:
            stream = changer.stream("alba", 16000, settings)
            out.append(torch.cat((stream.push(x), stream.flush())))
    assert torch.equal(*out)
    assert out[0].square().mean() > 1e-5


@pytest.mark.parametrize(("precision", "off"), (("int8", False), ("int8", True), ("float32", False)))
def test_heard_beside_is_the_same_bits(precision, off):
    """One thread that hears ahead and one that speaks; whatever is pushed, traced or not, and streams side by side."""
    x, (one, two) = voiced(1.0), (vivavoce.load(precision=precision, threads=n) for n in (1, 2))
    with eager() if off else torch.inference_mode():
        want = one.stream("alba", 16000)
        want = torch.cat((want.push(x), want.flush()))
        streams = [two.stream("alba", 16000) for _ in range(2)]
        out = [[] for _ in streams]
        for piece in x.split(700):
            for stream, said in zip(streams, out):
                said.append(stream.push(piece))
        for stream, said in zip(streams, out):
            assert torch.equal(torch.cat((*said, stream.flush())), want)


def test_a_graph_serves_prompts_of_any_length_and_all_settings(changer):
    """The first voice makes the graphs; another, whose prompt is shorter, and other settings make none."""
    x = voiced(0.5)
    changer.stream("alba", 16000).push(x)
    made = {m: len(g) for m, g in traced._graphs.items()}
    voice = changer.voice("bruno")
    short = replace(voice, **{k: getattr(voice, k)[:50] for k in ("content", "expression", "prosody", "codes")})
    with eager():
        expected = changer.stream(short, 16000).push(x)
    assert torch.equal(changer.stream(short, 16000).push(x), expected)
    changer.stream(short, 16000, Settings(delay=0, seed=5, guidance=0.3)).push(x)
    assert {m: len(g) for m, g in traced._graphs.items()} == made


class Doubler(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)
        self.calls = 0

    def double(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2

    def refuse(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if torch.jit.is_tracing():
            raise RuntimeError("no")
        return x * 2


def test_the_call_itself_runs_in_training_outside_inference_and_where_tracing_fails():
    m, x = Doubler().eval(), torch.ones(2)
    assert traced.traced(m, m.double, (), x).tolist() == [2, 2]
    assert m not in traced._graphs
    with torch.inference_mode():
        traced.traced(m, m.double, (), x)
        calls = m.calls
        assert traced.traced(m, m.double, (), x).tolist() == [2, 2]
        assert m.calls == calls  # a graph
        for _ in range(2):
            assert traced.traced(m, m.refuse, "refused", x).tolist() == [2, 2]
        assert m.calls == calls + 3  # one attempt at a trace, two calls
        traced.traced(m.train(), m.double, (), x)
        assert m.calls == calls + 4


def test_graphs_go_with_their_module():
    m = Doubler().eval()
    with torch.inference_mode():
        traced.traced(m, m.double, (), torch.ones(1))
    before = len(traced._graphs)
    del m
    gc.collect()
    assert len(traced._graphs) < before
