"""Several frames at once: in any chunks the same bits, of any step the same sound, and nothing waits for it."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import cuts, pushed, source
from test_stream import Act, bypass, owed_ms, play

import vivavoce
from vivavoce.changer import Changer
from vivavoce.codec import Codec
from vivavoce.core.errors import ConfigError
from vivavoce.core.traced import TOGETHER
from vivavoce.engine import Settings
from vivavoce.stream import Stream

RATE = 16000


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Changer:
    folder = tiny.build(tmp_path_factory.mktemp("model"), lm_config=tiny.WEIGHED)
    return vivavoce.load(folder, precision="float32")


@pytest.fixture(scope="module")
def embedded() -> Changer:
    return vivavoce.load()


@given(step=st.integers(1, TOGETHER), delay=st.integers(0, 2), rate=st.sampled_from([8000, 16000, 44100]),
       chunk=st.sampled_from([None, 0.04, 0.1]), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=25)
def test_any_chunks_the_same_bits(
    changer: Changer, step: int, delay: int, rate: int, chunk: float | None, seed: int
) -> None:
    x = tiny.voiced(0.5, rate)
    whole, parts = (changer.stream("ada", rate, chunk=chunk, step=step, delay=delay) for _ in range(2))
    y = pushed(whole, x, [len(x)])
    assert len(y) == len(x)
    assert torch.equal(pushed(parts, x, cuts(len(x), seed)), y)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_any_step_the_same_sound(changer: Changer, delay: int) -> None:
    """In float32, whose rounding hangs on shapes alone. The reference is the model heard frame by frame."""
    x = source()
    want = play(changer.stream("ada", step=1, delay=delay), x)
    assert want.abs().max() > 0.01
    for step in range(2, TOGETHER + 1):
        got = play(changer.stream("ada", step=step, delay=delay), x)
        assert torch.allclose(got, want, atol=1e-5), (step, float((got - want).abs().max()))


def test_a_context_is_as_long_at_any_step(changer: Changer) -> None:
    """The ring has room for a step beside the context: the first frame of a step sees what it would see alone."""
    x = tiny.voiced(1.2)
    want = [play(changer.stream("ada", step=1, context=c), x) for c in (0.1, 0.2)]
    assert (want[1] - want[0]).abs().max() > 3e-5  # babble hears little of its past
    for c, y in zip((0.1, 0.2), want):
        assert (play(changer.stream("ada", step=7, context=c), x) - y).abs().max() < 1e-6


@given(data=st.data(), step=st.integers(2, TOGETHER), rate=st.sampled_from([16000, 44100]))
@settings(max_examples=15)
def test_anything_at_any_time(changer: Changer, data: st.DataObject, step: int, rate: int) -> None:
    """Swaps, bypasses and pauses at random samples: as many samples out as in, whatever the chunks."""
    x = tiny.voiced(0.5, rate)
    deeds = st.sampled_from([lambda s: s.swap("ada"), lambda s: s.swap("bela"), bypass(True), bypass(False),
                             Stream.pause, Stream.resume])  # fmt: skip
    acts: list[Act] = sorted(data.draw(st.lists(st.tuples(st.integers(0, len(x)), deeds), max_size=6)),
                             key=lambda a: a[0])  # fmt: skip
    whole = play(changer.stream("ada", rate, step=step), x, acts)
    assert len(whole) == len(x) and bool(torch.isfinite(whole).all())
    assert torch.equal(play(changer.stream("ada", rate, step=step), x, acts, data.draw(st.integers(0, 99))), whole)


@pytest.mark.parametrize("at", [0, 3000, 9000])
def test_restored(changer: Changer, at: int) -> None:
    x, one = source(), changer.stream("ada", 16000, chunk=0.04)
    one.push(x[:at])
    kept = one.snapshot()
    rest = play(one, x[at:])
    for other in (one, changer.stream("bela", 16000, chunk=0.04)):
        other.restore(kept)
        assert torch.equal(play(other, x[at:], seed=at), rest)


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("chunk", [0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.16])
def test_latency_is_as_stated_and_no_longer_than_frame_by_frame(changer: Changer, rate: int, chunk: float) -> None:
    stream = changer.stream("ada", rate, chunk=chunk)
    assert abs(stream.latency.total - owed_ms(stream, tiny.voiced(1.0, rate))) < 0.3
    assert stream.latency.total <= changer.stream("ada", rate, chunk=chunk, step=1).latency.total + 1e-9
    assert stream.engine.step == {0.04: 2, 0.06: 3, 0.1: 5, 0.16: 8}.get(chunk, 1)


def test_what_step(changer: Changer, tmp_path_factory: pytest.TempPathFactory) -> None:
    chunks = (None, 0.0, 0.005, 0.02, 0.025, 0.04, 0.08, 0.14, 0.2, 0.22, 0.5, 600.0, 1764 / 44100, 1024 / 48000)
    assert [changer.step_of(c) for c in chunks] == [1, 1, 1, 1, 1, 2, 4, 7, 5, 1, 5, 8, 2, 1]
    for step in (0, TOGETHER + 1):
        with pytest.raises(ConfigError, match=f"step {step} is out of range; give 1 to 8"):
            changer.stream("ada", step=step)
    drawn = vivavoce.load(tiny.build(tmp_path_factory.mktemp("drawn")))  # each frame hears the one before it
    assert drawn.stream("ada", chunk=0.04).engine.step == drawn.stream("ada", step=8).engine.step == 1


def test_the_embedded_model_rounds_otherwise_and_no_more(embedded: Changer) -> None:
    """int8 has a scale for a step: longer ones are as near to float32 as single frames are."""
    x, codec, exact = tiny.voiced(1.6), embedded.codec, vivavoce.load(precision="float32")
    assert isinstance(codec, Codec)
    streams = exact.stream("alba"), *(embedded.stream("alba", step=s) for s in (1, 2, TOGETHER))
    want, *mels = (codec.analyse(codec.framing(play(s, x)[None])[0])[0] for s in streams)
    one, *others = (8.7 * float((mel - want).abs().mean()) for mel in mels)  # dB
    assert max(others) < min(1.3 * one, 1.2)


def test_a_file_is_converted_as_a_stream_of_long_steps(embedded: Changer) -> None:
    """Of the same settings, in any chunks, to the bit."""
    x = tiny.voiced(1.5)
    y, _ = embedded.convert(x, "alba", RATE)
    settings, way = embedded._scan(iter([x]), RATE, embedded.voice("alba"), Settings())
    stream = embedded.stream("alba", RATE, settings, way=way, step=TOGETHER)
    assert torch.equal(pushed(stream, x, cuts(len(x), 3)), y)
