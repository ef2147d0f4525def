"""Guidance away from the source's own sound: what it does to a frame, and that the engine gives it the right ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch import Tensor

from vivavoce import engine
from vivavoce.changer import Changer
from vivavoce.core.errors import ConfigError
from vivavoce.engine import Settings
from vivavoce.guidance import KEPT, UNSURE, Way, lead

RATE, HOP = 16000, 320


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Changer:
    shape = replace(tiny.LM, autoregressive=False)
    return Changer.from_pretrained(tiny.build(tmp_path_factory.mktemp("led"), lm_config=shape), "float32")


def led(said: Tensor, own: Tensor, voiced: Tensor, guidance: float, keep: float) -> Tensor:
    """Frames [T, d] one by one."""
    way, out = None, []
    for s, o, v in zip(said, own, voiced):
        y, way = lead(s[None, None], o[None, None], v[None, None], way, guidance, keep)
        out.append(y[0, 0])
    return torch.stack(out)


def test_it_goes_on_along_the_mean_way() -> None:
    """A voice that lies a constant way off is led as far again, once there were frames enough to believe it."""
    torch.manual_seed(0)
    own, way, voiced = torch.randn(400, 6), torch.randn(6), torch.ones(400)
    said = own + way + 0.1 * torch.randn(400, 6)
    torch.testing.assert_close(led(said, own, voiced, 0.0, 0.0), said)
    moved = led(said, own, voiced, 0.5, 0.0) - said
    torch.testing.assert_close(moved[0], 0.5 * (said - own)[0] / (1 + KEPT * UNSURE))  # one frame says little
    assert float((moved[100:] - 0.5 * way).abs().max()) < 0.12
    torch.testing.assert_close(led(said, own, voiced, 1.0, 0.0) - said, 2 * moved)


def test_only_voice_says_whose_voice_it_is() -> None:
    """Frames without voice are led as far as the last that had some, and a recording without any is left alone."""
    torch.manual_seed(0)
    said, own = torch.randn(60, 4), torch.randn(60, 4)
    voiced = (torch.arange(60) < 30).float()
    moved = led(said, own, voiced, 1.0, 0.0) - said
    torch.testing.assert_close(moved[30:], moved[29].expand(30, -1))
    assert torch.equal(led(said, own, torch.zeros(60), 1.0, 0.0), said)


def test_it_forgets() -> None:
    """A second of voice after the way has changed, half of the old one is left."""
    own, voiced = torch.zeros(600, 1), torch.ones(600)
    said = torch.cat((torch.ones(500, 1), torch.zeros(100, 1)))
    moved = led(said, own, voiced, 1.0, 0.0) - said
    assert float(moved[549, 0]) == pytest.approx(0.5 * float(moved[499, 0]), rel=0.01)
    assert pytest.approx(0.5) == KEPT**50


def test_what_is_kept_is_the_sources_movement() -> None:
    """All of it: the source's own vectors, moved by the mean way; none of it: what was said."""
    torch.manual_seed(0)
    own, voiced = torch.randn(80, 5), torch.ones(80)
    said = 0.5 * own + 2.0
    mean = led(said, own, voiced, 1.0, 0.0) - said
    torch.testing.assert_close(led(said, own, voiced, 0.0, 1.0), own + mean)
    torch.testing.assert_close(led(said, own, voiced, 0.5, 0.25), said + 0.5 * mean + 0.25 * (own + mean - said))


@pytest.mark.parametrize("delay", [0, 2])
def test_the_engine_compares_a_frame_with_itself(
    changer: Changer, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of frame t meets what the codec hears of frame t, units' look-ahead and delay notwithstanding."""
    x, calls = tiny.voiced(0.6), []

    def noted(said: Tensor, own: Tensor, periodicity: Tensor, way: Way | None, *more: float) -> tuple[Tensor, Way]:
        calls.append((own, periodicity))
        return lead(said, own, periodicity, way, *more)

    monkeypatch.setattr(engine, "lead", noted)
    y = changer.convert(x, "ada", RATE, Settings(delay=delay, source_register=120.0))[0]
    codec, padded = changer.codec, torch.nn.functional.pad(x, (0, 10 * HOP))[None]
    with torch.inference_mode():
        heard, _ = codec.embed(codec.analyse(codec.framing(padded)[0])[0])
        units, _ = changer.units(padded)
    n = len(x) // HOP
    own, periodicity = (torch.cat(t, 1) for t in zip(*calls))
    torch.testing.assert_close(own[:, :n], heard[:, :n], atol=1e-5, rtol=1e-4)
    voiced = units.periodicity[:, tiny.UNITS.lookahead :]
    torch.testing.assert_close(periodicity[:, :n], voiced[:, :n], atol=0.04, rtol=0)  # its steps are 1/15
    monkeypatch.undo()
    assert torch.equal(y, changer.convert(x, "ada", RATE, Settings(delay=delay, source_register=120.0))[0])


def test_settings_matter_and_zero_switches_them_off(changer: Changer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = tiny.voiced(0.8)

    def convert(**more: float) -> Tensor:
        return changer.convert(x, "bela", RATE, Settings(source_register=120.0, **more))[0]  # type: ignore[arg-type]

    plain = convert(guidance=0.0)
    assert not torch.equal(convert(guidance=1.0), plain)
    assert not torch.equal(convert(guidance=0.0, keep=0.5), plain)
    monkeypatch.setattr(engine, "lead", None)  # nothing is heard for nothing
    assert torch.equal(convert(guidance=0.0), plain)
    with pytest.raises(ConfigError, match=r"keep 1.5 is out of range"):
        Settings(keep=1.5)


def test_a_snapshot_remembers_the_way_and_a_new_voice_begins_its_own(changer: Changer) -> None:
    x, stream = tiny.voiced(1.0), changer.stream("ada", RATE, guidance=1.0)
    stream.push(x[:8000])
    kept = stream.snapshot()
    assert kept.state.way is not None and float(kept.state.way.weight) > UNSURE
    after = stream.push(x[8000:])
    stream.restore(kept)
    assert torch.equal(stream.push(x[8000:]), after)
    stream.restore(kept)
    stream.swap("bela")
    assert stream.snapshot().state.way is None
