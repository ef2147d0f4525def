"""What can be done to a running stream: swap its voice, bypass, pause, snapshot; in any chunking, to the sample."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vivavoce
from vivavoce.changer import Changer
from vivavoce.core.errors import AudioError, ConfigError, VivavoceError
from vivavoce.engine import WARM_UP, Settings
from vivavoce.stream import FADE_SECONDS, Stream

RATE = 16000
Act = tuple[int, Callable[[Stream], None]]  # at which input sample, what


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Changer:
    return vivavoce.load(tiny.build(tmp_path_factory.mktemp("model")))


def source(rate: int = RATE, seconds: float = 0.9) -> Tensor:
    """Voice with a hole of digital silence, longer than every look-ahead."""
    x = tiny.voiced(seconds, rate)
    x[int(0.3 * len(x)) : int(0.6 * len(x))] = 0.0
    return x


def play(stream: Stream, x: Tensor, acts: list[Act] = (), seed: int | None = None) -> Tensor:  # type: ignore[assignment]
    """Push x with `acts` on the way; in one piece between them, or in ragged ones."""
    rng, out, at = random.Random(seed), [], 0
    for stop, act in [*acts, (len(x), lambda s: None)]:
        while at < stop:
            n = stop - at if seed is None else min(stop - at, rng.choice((1, 7, 160, 320, 321, 999, 1764)))
            out.append(stream.push(x[at : at + n]))
            at += n
        act(stream)
    return torch.cat((*out, stream.flush()))


# ---- another voice ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "delay"), [(16000, 0), (16000, 2), (44100, 1), (8000, 1)])
def test_swap_in_any_chunking(changer: Changer, rate: int, delay: int) -> None:
    x = source(rate)
    acts: list[Act] = [(len(x) // 3, lambda s: s.swap("bela")), (len(x) // 2, lambda s: s.swap("ada"))]
    made = [play(changer.stream("ada", rate, delay=delay, temperature=1.0), x, acts, seed) for seed in (None, 0, 1)]
    assert len(made[0]) == len(x)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    plain = play(changer.stream("ada", rate, delay=delay, temperature=1.0), x)
    lag = round(changer.stream("ada", rate, delay=delay).latency.total * rate / 1000)
    before = len(x) // 3 - lag
    assert torch.equal(made[0][:before], plain[:before])  # the past stays as it was
    assert not torch.equal(made[0][len(x) // 3 :], plain[len(x) // 3 :])


def test_swap_before_the_first_word_is_a_start_with_that_voice(changer: Changer) -> None:
    x = source()
    want = play(changer.stream("bela"), x)
    for at in (0, 320, 640):  # nothing has been said yet: units' look-ahead 2
        assert torch.equal(play(changer.stream("ada"), x, [(at, lambda s: s.swap("bela"))]), want)


def test_after_a_swap_the_language_model_knows_only_the_new_voice(changer: Changer) -> None:
    """What the old voice said has no part in it: two different old voices, and guidance aside, one continuation. (Until
    it is known, the source's register is the old voice's, so here it is.)"""
    x, ends = source(), []
    third = changer.enroll(tiny.voiced(3.0, f0=160.0, seed=3), RATE)
    for first in ("ada", third):
        stream = changer.stream(first, temperature=1.0, source_register=120.0)
        stream.push(x[:9600])
        stream.swap(stream.prepare("bela"))
        assert stream.voice.name == "bela"
        ends.append(stream.snapshot().state.lm)
    assert torch.equal(ends[0].codes, ends[1].codes) and torch.equal(ends[0].keys, ends[1].keys)
    assert int(ends[0].frame) == WARM_UP


def test_swap_leaves_no_seam(changer: Changer) -> None:
    """The step at the border is like the steps of the signal itself: a hard cut between two voices is not."""
    x = tiny.voiced(1.2)
    y = play(changer.stream("ada"), x, [(9600, lambda s: s.swap("bela"))])
    seam = slice(9600 - 4 * 320 - 64, 9600 - 3 * 320 + 64)  # where the new voice sets in
    steps = y.diff().abs()
    assert float(steps[seam].max()) < 2.0 * float(steps[4000:8000].max())


def test_a_swap_that_fails_changes_nothing(changer: Changer) -> None:
    x = source()

    def fail(s: Stream) -> None:
        with pytest.raises(VivavoceError, match="did you mean bela"):
            s.swap("Bella")

    assert torch.equal(play(changer.stream("ada"), x, [(5000, fail)]), play(changer.stream("ada"), x))
    stream = changer.stream("ada")
    stream.flush()
    with pytest.raises(AudioError, match="flushed"):
        stream.swap("bela")
    stream.reset()
    stream.swap("bela")
    stream.reset()  # with the present voice
    assert torch.equal(play(stream, x), play(changer.stream("bela"), x))


# ---- bypass and pause ---------------------------------------------------------------------------------


def bypass(on: bool) -> Callable[[Stream], None]:
    return lambda s: setattr(s, "bypass", on)


@pytest.mark.parametrize("rate", [16000, 48000, 8000])
@pytest.mark.parametrize("pause", [False, True])
def test_bypass_is_the_original_in_its_place(changer: Changer, rate: int, pause: bool) -> None:
    x, third = tiny.voiced(1.2, rate), round(0.4 * rate)
    on, off = (Stream.pause, Stream.resume) if pause else (bypass(True), bypass(False))
    acts: list[Act] = [(third, on), (2 * third, off)]
    y, plain = play(changer.stream("ada", rate), x, acts), play(changer.stream("ada", rate), x)
    assert len(y) == len(x)
    lag, fade = round(changer.stream("ada", rate).latency.total * rate / 1000), round(FADE_SECONDS * rate)
    assert torch.equal(y[third + fade : 2 * third - lag], x[third + fade : 2 * third - lag])
    assert torch.equal(y[: third - lag], plain[: third - lag])
    if not pause:  # conversion went on underneath: right after the fade all is as if nothing had been
        assert torch.equal(y[2 * third + fade :], plain[2 * third + fade :])
    assert not torch.equal(y[2 * third + fade :], x[2 * third + fade :])
    steps = y.diff().abs()  # no click where it begins and ends
    ends = max(float(steps[a - lag - fade : a + lag].max()) for a in (third, 2 * third))
    assert ends < 1.5 * max(float(x.diff().abs().max()), float(plain.diff().abs().max()))
    for seed in (0, 1):
        assert torch.equal(play(changer.stream("ada", rate), x, acts, seed), y)


def test_bypass_from_the_start_is_the_input(changer: Changer) -> None:
    x = source(44100)
    assert torch.equal(play(changer.stream("ada", 44100), x, [(0, bypass(True))], 3), x)
    on_off: list[Act] = [(0, bypass(True)), (0, bypass(False))]
    assert torch.equal(play(changer.stream("ada", 44100), x, on_off), play(changer.stream("ada", 44100), x))


def test_a_paused_stream_computes_nothing(changer: Changer, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, x = changer.stream("ada"), tiny.voiced(1.0)
    stream.push(x[:3200])
    stream.pause()
    assert stream.paused and stream.bypass
    stream.push(x[3200:3840])
    with monkeypatch.context() as m:
        m.setattr(stream.engine, "_hear", lambda *a: pytest.fail("computed"))
        stream.push(x[3840:8000])
    stream.resume()
    assert not stream.paused
    y = torch.cat((stream.push(x[8000:]), stream.flush()))
    assert not torch.equal(y[-3200:], x[-3200:])


def test_a_short_pause_loses_nothing(changer: Changer) -> None:
    """Resumed before the next frame was whole, conversion goes on as if nothing had been."""
    x = source()
    acts: list[Act] = [(8000, Stream.pause), (8200, Stream.resume)]
    assert torch.equal(play(changer.stream("ada"), x, acts), play(changer.stream("ada"), x))


@given(data=st.data(), rate=st.sampled_from([8000, 16000, 44100]))
@settings(max_examples=15)
def test_anything_at_any_time(changer: Changer, data: st.DataObject, rate: int) -> None:
    """Swaps, bypasses and pauses at random samples: as many samples out as in, whatever the chunks."""
    x = tiny.voiced(0.3, rate)
    deeds = st.sampled_from([lambda s: s.swap("ada"), lambda s: s.swap("bela"), bypass(True), bypass(False),
                             Stream.pause, Stream.resume])  # fmt: skip
    acts = sorted(data.draw(st.lists(st.tuples(st.integers(0, len(x)), deeds), max_size=6)), key=lambda a: a[0])
    whole = play(changer.stream("ada", rate), x, acts)
    assert len(whole) == len(x) and bool(torch.isfinite(whole).all())
    assert torch.equal(play(changer.stream("ada", rate), x, acts, data.draw(st.integers(0, 99))), whole)


# ---- snapshots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("where", [0.0, 0.05, 0.37, 0.55])
def test_restored_stream_gives_the_same_bits(changer: Changer, rate: int, where: float) -> None:
    x = source(rate)
    at = round(where * len(x))
    stream = changer.stream("ada", rate, temperature=1.0)
    stream.push(x[:at])
    stream.swap("bela")
    kept = stream.snapshot()
    first = play(stream, x[at:])  # to the end and flushed: the cache is overwritten many times
    for other in (stream, stream, changer.stream("ada", rate, temperature=1.0)):
        other.restore(kept)
        assert other.voice.name == "bela"
        assert torch.equal(play(other, x[at:], seed=at), first)


def test_fork(changer: Changer) -> None:
    x, a = source(), changer.stream("ada")
    a.push(x[:5000])
    b = changer.stream("ada")
    b.restore(a.snapshot())
    ya, yb = [], []
    for part in x[5000:].split(700):  # in turns, so that a shared cache would show
        ya.append(a.push(part))
        yb.append(b.push(part))
    assert torch.equal(torch.cat(ya), torch.cat(yb))


# ---- latency and options ------------------------------------------------------------------------------


def owed_ms(stream: Stream, x: Tensor) -> float:
    """What a stream owes at most, just before one of its chunks of x is answered."""
    taken = out = most = 0
    for part in x.split(round((stream.chunk or 1.0) * stream.rate)):
        taken += len(part)
        most = max(most, taken - out)
        out += len(stream.push(part))
    return 1000 * most / stream.rate


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("chunk", [0.01, 0.02, 0.03, 0.04, 0.1])
def test_latency_is_as_stated(changer: Changer, rate: int, chunk: float) -> None:
    """What a stream owes at most, just before a chunk is answered, is what `latency.total` says."""
    stream = changer.stream("ada", rate, chunk=chunk)
    assert abs(stream.latency.total - owed_ms(stream, tiny.voiced(0.7, rate))) < 0.3
    items = vars(stream.latency)
    assert list(items) == ["chunk", "frame", "look_ahead", "delay", "overlap", "resampling"]
    assert stream.latency.total == pytest.approx(sum(items.values()))
    assert items["chunk"] == pytest.approx(1000 * chunk, abs=0.2) and items["look_ahead"] == 40
    if rate == RATE:
        assert items["resampling"] == 0
    if rate == RATE and chunk == 0.04:
        assert stream.latency.total == 100


def test_options_are_settings(changer: Changer) -> None:
    x = source()
    want = play(changer.stream("ada", RATE, Settings(seed=4, delay=2, context=5)), x)
    assert torch.equal(play(changer.stream("ada", RATE, seed=4, delay=2, context=0.1), x), want)
    assert torch.equal(play(changer.stream("ada", RATE, Settings(seed=4), delay=2, context=0.1, chunk=0.04), x), want)
    for bad, said in (({"context": 0.3}, "0.02 to 0.2 s"), ({"context": 0.0}, "0.02 to"), ({"delay": 3}, "0 to 2"),
                      ({"settings": Settings(context=11)}, "this model has 10"), ({"delai": 1}, "no setting delai"),
                      ({"chunk": 0.0}, "chunk")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            changer.stream("ada", **bad)  # type: ignore[arg-type]


def test_context_is_what_the_model_sees(changer: Changer) -> None:
    """The whole context, named, is the default; a shorter ring holds less, and the last layer notices."""
    x, frames = tiny.voiced(0.4), 20 - 2 - 1  # that the language model has seen after 20
    newest = []
    for context in (None, 0.2, 0.04):
        stream = changer.stream("ada", temperature=0.0, context=context)
        stream.push(x)
        lm, n = stream.snapshot().state.lm, round((context or 0.2) / 0.02)
        prompt = lm.keys.shape[3] - n
        assert prompt == stream.voice.frames
        newest.append(lm.keys[-1, ..., prompt + (frames - 1) % n, :])
    assert torch.equal(newest[0], newest[1]) and float((newest[0] - newest[2]).abs().max()) > 1e-4
