"""What the language model misses of a voice, fitted to its reference: the map, its file, and where it is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from vivavoce.blend import _joined, crowd
from vivavoce.changer import Changer
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.core.traced import TOGETHER
from vivavoce.engine import Settings
from vivavoce.fit import _ridge, fit, mend
from vivavoce.voice import MAPS, Voice

RATE, D = 16000, tiny.CODEC.code_dim
STILL = replace(tiny.LM, autoregressive=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("fitted"), lm_config=STILL)


@pytest.fixture(scope="module")
def changer(folder: Path) -> Changer:
    return Changer.from_pretrained(folder, "float32")


@pytest.fixture(scope="module")
def voice(changer: Changer) -> Voice:
    return changer.enroll(tiny.voiced(4.0, f0=150.0, seed=1), RATE, "cleo")


def test_much_reference_finds_the_map_and_little_moves_little(changer: Changer) -> None:
    torch.manual_seed(0)
    slopes, offset = 0.3 * torch.randn(D, D), torch.randn(D)
    said = torch.randn(20_000, D)
    own = said + said @ slopes + offset
    much, little = (_ridge(changer.codec, said[:n], own[:n], torch.ones(n, dtype=torch.float64)) for n in (20_000, 3))
    assert float((mend(said, much) - own).square().mean()) < 1e-3 * float((said - own).square().mean())
    assert float((mend(said, little) - said).square().mean()) < 0.2 * float((said - own).square().mean())
    torch.testing.assert_close(mend(said, much, 0.5), (said + mend(said, much)) / 2, atol=1e-4, rtol=1e-4)
    assert not _ridge(changer.codec, said, own, torch.zeros(20_000, dtype=torch.float64)).any()  # nothing was heard


def test_a_reference_is_said_more_like_itself(changer: Changer, voice: Voice) -> None:
    """The reference once more, prompted with the voice as it is in use: with the fit it lies nearer to what it was."""
    x = tiny.voiced(4.0, f0=150.0, seed=1)
    assert voice.fit is not None and voice.fit.shape == (D + 1, D) and voice.fitted == changer.lm_fingerprint != ""
    content, expression, units, codes = changer.tokenise(x)
    frames, _ = changer.codec.framing(x[None])
    with torch.inference_mode():
        (own, _), _ = changer.codec.hear(frames)
    source = replace(voice, content=content, expression=expression, prosody=units).source()
    assert torch.equal(fit(changer.codec, changer.lm, source, codes[None], own), voice.fit)
    weights, _ = changer.lm.generate(source, changer.lm.start(voice.source(), voice.codes[None].long()))
    said = changer.codec.quantiser.decode(weights)
    before, after = (float((y - own).square().mean()) for y in (said, mend(said, voice.fit)))
    assert after < 0.8 * before


def test_it_travels_with_the_voice(changer: Changer, voice: Voice, tmp_path: Path) -> None:
    voice.save(tmp_path / "cleo.voice")
    back = changer.voice(tmp_path / "cleo.voice")
    torch.testing.assert_close(back.fit, voice.fit, atol=2e-3, rtol=2e-3)
    assert back.strangers is None  # this model came without a crowd
    replace(voice, strangers=voice.fit).save(tmp_path / "cleo.voice")
    torch.testing.assert_close(changer.voice(tmp_path / "cleo.voice").strangers, voice.fit, atol=2e-3, rtol=2e-3)
    other = changer.voice(replace(voice, strangers=voice.fit, fitted="of another language model"))
    assert other.fit is None and other.strangers is None  # the voice is still the model's: same codec, same units
    for name in MAPS:
        for damage in (torch.zeros(D, D), torch.full((D + 1, D), float("nan"))):
            with pytest.raises(CheckpointError, match="'cleo' is damaged"):
                changer.voice(replace(voice, **{name: damage}))  # type: ignore[arg-type]
    replace(voice, fit=None).save(tmp_path / "plain.voice")
    assert Voice.load(tmp_path / "plain.voice").fit is None


def test_it_is_heard_and_can_be_left_out(changer: Changer, voice: Voice) -> None:
    x, plain = tiny.voiced(0.6), Settings(guidance=0.0, source_register=120.0)

    def convert(who: Voice, settings: Settings = plain) -> torch.Tensor:
        return changer.convert(x, who, RATE, settings)[0]

    bare = replace(voice, fit=None)
    assert not torch.equal(convert(voice), convert(bare))
    assert torch.equal(convert(voice, replace(plain, fit=0.0)), convert(bare))
    settings = Settings(guidance=1.0, keep=0.2, source_register=120.0)
    stream = changer.stream(voice, RATE, settings, step=TOGETHER)  # as a file is converted
    parts = [stream.push(part) for part in x.split(777)]
    assert torch.equal(torch.cat((*parts, stream.flush())), convert(voice, settings))
    with pytest.raises(ConfigError, match=r"fit 2 is out of range"):
        Settings(fit=2)


def test_a_swap_brings_its_own(changer: Changer, voice: Voice) -> None:
    """After a swap the stream goes on as with the new voice's fit, not with the old one's."""
    x, ends = tiny.voiced(1.0), []
    for first in (voice, replace(voice, fit=None)):
        stream = changer.stream(first, RATE, guidance=0.0)
        stream.push(x[:8000])
        stream.swap("bela")
        stream.push(x[8000:12000])
        ends.append(stream.push(x[12000:]))
    torch.testing.assert_close(ends[0], ends[1], atol=2e-3, rtol=0)  # the codec's decoder remembers a little


def test_a_joined_voice_has_the_mean(voice: Voice) -> None:
    other = replace(voice, fit=torch.zeros_like(voice.fit))
    torch.testing.assert_close(_joined([voice, other], "both", 10).fit, voice.fit / 2)
    assert _joined([voice, replace(voice, fit=None)], "both", 10).fit is None


def test_a_crowd_is_many_in_one_register(changer: Changer, voice: Voice) -> None:
    high = changer.enroll(tiny.voiced(3.0, f0=240.0, seed=2), RATE, "dora")
    made = crowd([voice, high], 30)
    assert made.frames == 60 and made.fit is None
    assert made.register == pytest.approx((voice.register * high.register) ** 0.5)
    heard = made.source()
    for part, one in zip((slice(0, 30), slice(30, 60)), (voice, high)):
        assert torch.equal(made.codes[part], one.codes[:30])
        moved = one.source().f0[:, :30] * (made.register / one.register)
        torch.testing.assert_close(heard.f0[:, part], moved, rtol=2e-3, atol=0)


def test_drawn_codes_cannot_be_mended(tmp_path: Path) -> None:
    drawn = Changer.from_pretrained(tiny.build(tmp_path), "float32")
    assert drawn.enroll(tiny.voiced(2.0), RATE, "ada").fit is None
