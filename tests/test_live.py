"""What makes the live path quick and like its target: int8 layers, guidance away from the crowd; and blends."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from vivavoce.blend import blend, crowd
from vivavoce.changer import Changer, load
from vivavoce.core.errors import ConfigError, VivavoceError
from vivavoce.core.int8 import Int8Linear, int8
from vivavoce.engine import Settings

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def changer(folder: Path) -> Changer:
    made = load(folder)
    made.crowd = crowd(list(made.voices.values()), 20)
    return made


def test_int8_is_near_and_leaves_the_original_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32, bias=False))
    quick, x = int8(net), torch.randn(1, 1, 64)
    assert isinstance(quick[0], Int8Linear) and isinstance(net[0], nn.Linear)
    error = (quick(x) - net(x)).square().mean() / net(x).square().mean()
    assert 0 < error < 1e-3  # 30 dB


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_int8_does_not_overflow(rows: int) -> None:
    """The largest sums that there are: all weights at their most, inputs at theirs, of as many bits as here."""
    layer = nn.Linear(512, 48, bias=False)
    layer.weight.data.fill_(1.0)
    layer.weight.data[::2] = -1.0
    x = torch.cat((torch.ones(rows, 511), -torch.ones(rows, 1)), dim=1)
    assert torch.allclose(int8(nn.Sequential(layer))(x), layer(x), rtol=0.02)


def test_precisions(folder: Path) -> None:
    x, settings = tiny.voiced(0.6), Settings(source_register=120.0)
    exact = load(folder, precision="float32").convert(x, "ada", RATE, settings)[0]
    assert torch.equal(exact, load(folder, precision="float32").convert(x, "ada", RATE, settings)[0])
    assert not torch.equal(exact, load(folder).convert(x, "ada", RATE, settings)[0])
    with pytest.raises(ConfigError, match="float16"):
        load(folder, precision="float16")


def test_guidance_matters_and_zero_switches_it_off(changer: Changer, folder: Path) -> None:
    x = tiny.voiced(0.8)

    def convert(g: float, who: Changer = changer) -> torch.Tensor:
        return who.convert(x, "ada", RATE, Settings(guidance=g, source_register=120.0))[0]

    assert torch.equal(convert(0.0), convert(0.0, load(folder)))  # a model without a crowd has no guidance
    assert torch.equal(convert(2.0, load(folder)), convert(0.0))
    assert not torch.equal(convert(2.0), convert(0.0))


def test_guided_stream_in_any_chunks(changer: Changer) -> None:
    x, settings = tiny.voiced(0.8), Settings(guidance=1.5, temperature=1.0, source_register=120.0)
    whole = changer.convert(x, "bela", RATE, settings)[0]
    stream = changer.stream("bela", RATE, settings)
    parts = [stream.push(part) for part in x.split(777)]
    assert torch.equal(torch.cat((*parts, stream.flush())), whole)


def test_blend(changer: Changer) -> None:
    ada, bela = changer.voices["ada"], changer.voices["bela"]
    new = blend(changer, [ada, bela], tiny.voiced(3.0), "both")
    assert changer.voice(new).name == "both" and new.tokeniser == changer.tokeniser
    with pytest.raises(VivavoceError, match="two voices"):
        blend(changer, [ada], tiny.voiced(3.0), "one")


def test_preview_sounds(changer: Changer) -> None:
    y, rate = changer.preview("ada")
    assert rate == RATE and len(y) == (changer.voices["ada"].frames - 1) * 320
    assert 0.001 < float(y.abs().max()) <= 1.0
