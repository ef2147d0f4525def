"""Guidance away from the source's own voice: what is learnt of it, what a frame gets, and that the engine compares a
frame with itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import tiny
import torch
from torch import Tensor

from vivavoce import engine
from vivavoce.blend import crowd
from vivavoce.changer import Changer
from vivavoce.core.errors import ConfigError
from vivavoce.core.traced import eager
from vivavoce.engine import Settings
from vivavoce.fit import Scale, scale_of
from vivavoce.guidance import SURE, Way, begin, lead, look, strangers

RATE, HOP, D = 16000, 320, 6
SCALE = Scale(torch.zeros(D, dtype=torch.float64), torch.ones(D, dtype=torch.float64))


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Changer:
    shape = replace(tiny.LM, autoregressive=False)
    return Changer.from_pretrained(tiny.build(tmp_path_factory.mktemp("led"), lm_config=shape), "float32")


def led(said: Tensor, own: Tensor, voiced: Tensor, guidance: float, keep: float,
        guess: Tensor | None = None) -> tuple[Tensor, Way]:  # fmt: skip
    """Frames [T, d] one by one: what is added to each, and the state after them."""
    way, out = begin(D, guess), []
    for s, o, v in zip(said, own, voiced):
        y, way = lead(s[None, None], o[None, None], v[None, None], way, SCALE, guidance, keep)
        out.append(y[0, 0])
    return torch.stack(out), way


def source(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is said, and how a voice lies to it (an affine map of it), and words that no map tells: [n, d] each."""
    torch.manual_seed(0)
    said = torch.randn(n, D)
    return said, said @ (0.4 * torch.randn(D, D)) + torch.randn(D), 0.3 * torch.randn(n, D)


def test_it_goes_on_away_from_the_voice_and_puts_words_back() -> None:
    said, voice, words = source(4000)
    own, voiced = said + voice + words, torch.ones(4000)
    away, _ = led(said, own, voiced, 1.0, 0.0)
    back, _ = led(said, own, voiced, 0.0, 1.0)
    late = slice(3000, None)
    assert float((away + voice)[late].square().mean()) < 0.02 * float(voice.square().mean())
    share = 3500 / (3500 + SURE)
    assert float((back - share * words)[late].square().mean()) < 0.1 * float(words.square().mean())
    both, _ = led(said, own, voiced, 0.5, 0.25)
    torch.testing.assert_close(both, 0.5 * away + 0.25 * back, atol=1e-4, rtol=1e-4)
    assert not led(said[:50], own[:50], voiced[:50], 0.0, 0.0)[0].any()


def test_little_voice_is_little_believed() -> None:
    """The first frames are hardly moved, and a recording without any voice is left alone."""
    said, voice, words = source(300)
    own = said + voice + words
    moved, _ = led(said, own, torch.ones(300), 1.0, 1.0)
    assert not moved[0].any()
    size = moved.square().mean(1).sqrt()
    assert float(size[1:6].mean()) < 0.5 * float(size[200:].mean())
    assert not led(said, own, torch.zeros(300), 1.0, 1.0)[0].any()


@pytest.mark.parametrize("guess", [None, 0.2 * torch.ones(D + 1, D)])
def test_looking_beforehand_is_learning_frame_by_frame(guess: Tensor | None) -> None:
    said, voice, words = source(200)
    own, voiced = said + voice + words, (torch.arange(200) % 3 > 0).float()
    ways = led(said, own, voiced, 1.0, 1.0, guess)[1], look(said, own, voiced, SCALE, guess)
    for a, b in zip(*ways):
        torch.testing.assert_close(a, b, rtol=0.02, atol=1e-4)  # looking forgets nothing


def test_a_guess_leads_from_the_first_frame_and_gives_way_to_what_is_heard() -> None:
    said, voice, words = source(4000)
    wrong, voiced = torch.zeros(D + 1, D), torch.ones(4000)
    wrong[-1] = 3.0
    right = look(said, said + voice, voiced, SCALE).found[0]
    own = said + voice + words
    first, _ = led(said[:1], own[:1], voiced[:1], 1.0, 0.0, right)
    torch.testing.assert_close(first, -voice[:1], atol=0.1, rtol=0)
    misled, plain = (led(said, own, voiced, 1.0, 0.0, guess)[0] for guess in (wrong, None))
    assert float((misled - plain)[0].abs().min()) > 2.0 and float((misled - plain)[3000:].abs().max()) < 0.2


def test_strangers_are_what_a_crowd_differs_by(changer: Changer) -> None:
    """The map predicts a crowd from what the voice says of it; a stream begins with it, a swap with the other's."""
    made = Changer(changer.codec, changer.units, changer.lm, changer.tokeniser)
    assert made.enroll(tiny.voiced(2.0), RATE).strangers is None  # nobody to ask
    few = [made.enroll(tiny.voiced(2.0, f0=f0, seed=i), RATE) for i, f0 in enumerate((110.0, 150.0, 210.0))]
    made.crowd = crowd(few, 40)
    voices = [made.enroll(tiny.voiced(3.0, f0=f0), RATE) for f0 in (120.0, 220.0)]
    codec, heard, codes = made.codec, made.crowd.source(), made.crowd.codes[None].long()
    for voice in voices:
        prompt, moved = (voice.source(), voice.codes[None].long()), heard.f0 * (voice.register / made.crowd.register)
        found = strangers(codec, made.lm, prompt, heard._replace(f0=moved), codes)
        assert torch.equal(found, voice.strangers)
        weights, _ = made.lm.generate(heard._replace(f0=moved), made.lm.start(*prompt))
        said, own = (codec.quantiser.decode(c)[heard.periodicity > 0.5].double() for c in (weights, codes))
        missed, left = own - said, own - said - scale_of(codec)(said) @ found.double()
        assert float(left.square().mean()) < 0.8 * float(missed.square().mean())
    stream = made.stream(voices[0], RATE)
    begun = [stream.snapshot().state.way]
    stream.push(tiny.voiced(0.5))
    stream.swap(voices[1])
    begun.append(stream.snapshot().state.way)
    for voice, way in zip(voices, begun):
        torch.testing.assert_close(way.found[0].float(), voice.strangers)
        assert float(way.seen) == 0


def test_who_speaks_now_is_followed() -> None:
    """After ten minutes of one voice another takes over: a minute later the map is the other's, and it is stable."""
    said, voice, _ = source(36_000)
    own = said + voice
    own[30_000:] = said[30_000:] - voice[30_000:]
    moved, way = led(said[::2], own[::2], torch.ones(18_000), 1.0, 0.0)  # every other frame, for time's sake
    missed = (moved + (own - said)[::2]).square().mean(1)
    before, after, end = (float(missed[a:b].mean()) for a, b in ((14_000, 15_000), (15_000, 15_100), (17_500, 18_000)))
    assert before < 1e-3 * after and end < 0.2 * after
    assert torch.linalg.eigvalsh(way.covariance[0]).min() > 0


@pytest.mark.parametrize("delay", [0, 2])
def test_the_engine_compares_a_frame_with_itself(
    changer: Changer, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said of frame t meets what the codec hears of frame t, units' look-ahead and delay notwithstanding."""
    x, calls = tiny.voiced(0.6), []

    def noted(said: Tensor, own: Tensor, periodicity: Tensor, *more: object) -> tuple[Tensor, Way]:
        calls.append((own, periodicity))
        return lead(said, own, periodicity, *more)  # type: ignore[arg-type]

    settings = Settings(delay=delay, source_register=120.0)
    plain = changer.convert(x, "ada", RATE, settings)[0]
    monkeypatch.setattr(engine, "lead", noted)
    with eager():
        assert torch.equal(changer.convert(x, "ada", RATE, settings)[0], plain)
    codec, padded = changer.codec, torch.nn.functional.pad(x, (0, 10 * HOP))[None]
    with torch.inference_mode():
        heard, _ = codec.embed(codec.analyse(codec.framing(padded)[0])[0])
        units, _ = changer.units(padded)
    n = len(x) // HOP
    own, periodicity = (torch.cat(t, 1) for t in zip(*calls))
    torch.testing.assert_close(own[:, :n], heard[:, :n], atol=1e-5, rtol=1e-4)
    voiced = units.periodicity[:, tiny.UNITS.lookahead :]
    torch.testing.assert_close(periodicity[:, :n], voiced[:, :n], atol=0.04, rtol=0)  # its steps are 1/15


def test_settings_matter_and_zero_switches_them_off(changer: Changer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = tiny.voiced(0.8)

    def convert(**more: float) -> Tensor:
        return changer.convert(x, "bela", RATE, Settings(source_register=120.0, **more))[0]  # type: ignore[arg-type]

    plain = convert(guidance=0.0, keep=0.0)
    assert not torch.equal(convert(guidance=1.0, keep=0.0), plain)
    assert not torch.equal(convert(guidance=0.0, keep=0.5), plain)
    monkeypatch.setattr(engine, "lead", None)  # nothing is heard for nothing
    assert torch.equal(convert(guidance=0.0, keep=0.0), plain)
    with pytest.raises(ConfigError, match=r"keep 1.5 is out of range"):
        Settings(keep=1.5)


def test_a_file_is_known_beforehand(changer: Changer, tmp_path: Path) -> None:
    """The scan for the register finds the voice, too, as the stream itself would learn it, whatever the blocks."""
    x = tiny.voiced(2.0)
    soundfile.write(tmp_path / "x.wav", x.numpy(), RATE, subtype="FLOAT")
    known = changer.open(tmp_path / "x.wav", "bela").engine.way
    assert known is not None and float(known.seen) > 50
    register = changer.scan_register(tmp_path / "x.wav")
    stream = changer.stream("bela", RATE, source_register=register, delay=1)
    stream.push(x)
    stream.flush()
    learnt = stream.snapshot().state.way
    assert abs(float(learnt.seen - known.seen)) <= 3  # a frame is heard in pieces or at once: the tracker may waver
    x0 = scale_of(changer.codec)(torch.randn(50, tiny.CODEC.code_dim))
    torch.testing.assert_close(x0 @ known.found[0], x0 @ learnt.found[0], atol=0.1, rtol=0.1)
    one, other = (torch.cat([*changer.convert_blocks(tmp_path / "x.wav", "bela", seconds=s)]) for s in (0.37, 5.0))
    assert torch.equal(one, other) and torch.equal(one, changer.convert(x, "bela", RATE)[0])


def test_a_snapshot_remembers_and_a_new_voice_begins_anew(changer: Changer) -> None:
    x, stream = tiny.voiced(1.0), changer.stream("ada", RATE, guidance=1.0)
    stream.push(x[:8000])
    kept = stream.snapshot()
    assert kept.state.way is not None and float(kept.state.way.seen) > 0
    after = stream.push(x[8000:])
    stream.restore(kept)
    assert torch.equal(stream.push(x[8000:]), after)
    stream.restore(kept)
    stream.swap("bela")  # what is said is another's now
    assert float(stream.snapshot().state.way.seen) == 0


@pytest.mark.parametrize("n", [1, 2, 319, 321, 700])
def test_a_file_too_short_to_know_anything_of(changer: Changer, n: int) -> None:
    for rate in (RATE, 48000):
        assert len(changer.convert(tiny.voiced(0.1)[:n], "ada", rate)[0]) == n


def test_what_is_beyond_the_model_is_said_before_anything_is_heard(changer: Changer, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", tiny.voiced(0.5).numpy(), RATE)
    with pytest.raises(ConfigError, match="delay 9: this model takes 0 to 2"):
        changer.open(tmp_path / "x.wav", "ada", Settings(delay=9))


def test_a_pause_forgets_nothing_of_the_source(changer: Changer) -> None:
    x, stream = tiny.voiced(1.5), changer.stream("ada", RATE)
    stream.push(x[:8000])
    stream.pause()
    stream.push(x[8000:16000])
    known = stream.snapshot().state.way
    stream.resume()
    assert float(known.seen) > 0 and stream.snapshot().state.way is known
