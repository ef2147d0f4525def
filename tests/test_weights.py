"""A language model that is not autoregressive: weights of codes instead of draws, and codecs that mix by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_encodec_voice import random_encodec
from test_engine import RATE, logits, pushed, units
from torch import Tensor

from vivavoce.changer import Changer
from vivavoce.codec.encodec.rvq import ResidualVQ as EncodecVQ
from vivavoce.codec.encodec.voice import EncodecVoice
from vivavoce.codec.rvq import ResidualVQ
from vivavoce.engine import Settings
from vivavoce.lm import LMState, Source, VoiceLM

LM = replace(tiny.LM, autoregressive=False)


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Changer:
    return Changer.from_pretrained(tiny.build(tmp_path_factory.mktemp("still"), lm_config=LM), "float32")


def own(changer: Changer, name: str = "ada") -> tuple[Source, Tensor]:
    voice = changer.voice(name)
    return voice.source(), voice.codes[None, :, : LM.n_codebooks].long()


@pytest.mark.parametrize("delay", [0, 2])
def test_streaming_equals_training(changer: Changer, delay: int) -> None:
    """Three rings long, frame by frame: the softmax of the parallel pass, whatever the past is said to be."""
    frames = 3 * LM.context + 7
    src, prompt = units(frames, LM), own(changer)
    weights, state = changer.lm.generate(src, changer.lm.start(*prompt), temperature=1.0, delay=delay)
    codes = torch.randint(LM.codebook_size, (1, frames, LM.n_codebooks))
    parallel, _ = logits(changer.lm, *prompt, src, codes, codes, delay=delay)
    torch.testing.assert_close(weights[0], parallel.softmax(-1).transpose(0, 1), atol=1e-5, rtol=0)
    assert weights.shape == (1, frames, LM.n_codebooks, LM.codebook_size) and int(state.frame) == frames
    assert float(weights.amax(-1).mean()) > 2 / LM.codebook_size  # opinions, not a uniform shrug


def test_the_expected_vectors_are_those_that_the_codec_mixes(changer: Changer) -> None:
    src, prompt = units(9, LM), own(changer)
    books = torch.stack([b.vectors for b in changer.codec.quantiser.books])
    codes = torch.zeros(1, 9, LM.n_codebooks, dtype=torch.int64)
    _, mean = changer.lm(*prompt, src, codes, codes, books=books)
    weights, _ = changer.lm.generate(src, changer.lm.start(*prompt))
    torch.testing.assert_close(changer.codec.quantiser.decode(weights), mean.detach(), atol=1e-5, rtol=1e-4)


def test_guidance_moves_weights_along_a_line(changer: Changer) -> None:
    src, (prompt, codes) = units(6, LM), own(changer)

    def at(guidance: float) -> Tensor:
        state = changer.lm.start(prompt, codes, own(changer, "bela"))
        assert state.codes.shape[0] == 2
        return changer.lm.generate(src, state, guidance=guidance)[0]

    zero, one, three = at(0.0), at(1.0), at(3.0)
    alone, _ = changer.lm.generate(src, changer.lm.start(prompt, codes))
    torch.testing.assert_close(zero, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(three - zero, 3 * (one - zero), atol=1e-5, rtol=0)
    torch.testing.assert_close(three.sum(-1), torch.ones(three.shape[:-1]))
    assert float((one - zero).abs().max()) > 1e-3


def test_half_of_guidance_is_a_running_mean(changer: Changer) -> None:
    """The first frame is guided in full; then the mean of all frames so far takes half of the way, and forgets."""
    frames, (prompt, codes) = 40, own(changer)
    src, crowd = units(frames, LM), own(changer, "bela")
    p = min(codes.shape[1], crowd[1].shape[1])
    alone, other = (changer.lm.generate(src, changer.lm.start(Source(*(t[:, :p] for t in s)), c[:, :p]))[0]
                    for s, c in ((prompt, codes), crowd))  # fmt: skip
    guided, state = changer.lm.generate(src, changer.lm.start(prompt, codes, crowd), guidance=1.5)
    way, mean = (alone - other)[0], torch.zeros(LM.n_codebooks, LM.codebook_size)
    for t in range(frames):
        keep = min(t / (t + 1), 0.5 ** (1 / 25))
        mean = keep * mean + (1 - keep) * way[t]
        torch.testing.assert_close(guided[0, t], alone[0, t] + 1.5 * (mean + way[t]) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(state.away[0], mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guided", [False, True])
@given(cut=st.integers(1, 19))
def test_a_snapshot_goes_on_as_the_stream_does(changer: Changer, guided: bool, cut: int) -> None:
    src, lm = units(20, LM), changer.lm
    crowd, g = (own(changer, "bela"), 1.0) if guided else (None, 0.0)
    whole, _ = lm.generate(src, lm.start(*own(changer), crowd), guidance=g)
    first, state = lm.generate(Source(*(t[:, :cut] for t in src)), lm.start(*own(changer), crowd), guidance=g)
    kept: LMState = state.clone()
    rest = Source(*(t[:, cut:] for t in src))
    after = lm.generate(rest, state, guidance=g)[0]
    assert torch.equal(after, lm.generate(rest, kept, guidance=g)[0])
    assert torch.equal(torch.cat((first, after), 1), whole)


@given(data=st.data())
def test_any_chunking_gives_the_same_sound(changer: Changer, data: st.DataObject) -> None:
    x, sizes = tiny.voiced(0.12, RATE), []
    while sum(sizes) < len(x):
        sizes.append(min(data.draw(st.integers(1, 700)), len(x) - sum(sizes)))
    whole = pushed(changer.stream("ada", RATE), x, [len(x)])
    assert torch.equal(pushed(changer.stream("ada", RATE), x, sizes), whole)
    assert float(whole.square().mean()) > 1e-6


def test_seed_and_temperature_draw_no_codes(changer: Changer) -> None:
    src, prompt = units(5, LM), own(changer)
    said = [
        changer.lm.generate(src, changer.lm.start(*prompt), seed, t)[0] for seed, t in ((0, 0.0), (1, 1.0))
    ]
    assert torch.equal(*said)


def test_a_voice_matters(changer: Changer) -> None:
    x = tiny.voiced(0.5, RATE)
    a, b = (pushed(changer.stream(v, RATE, Settings(guidance=0.0)), x, [len(x)]) for v in ("ada", "bela"))
    assert float((a - b).abs().max()) > 1e-3


def test_nothing_to_say(changer: Changer) -> None:
    empty, _ = changer.lm.generate(units(0, LM), changer.lm.start(*own(changer)))
    assert empty.shape == (1, 0, LM.n_codebooks, LM.codebook_size) and empty.is_floating_point()


def test_it_is_saved_and_loaded_as_what_it_is(changer: Changer, tmp_path: Path) -> None:
    changer.lm.save_pretrained(tmp_path)
    assert not VoiceLM.from_pretrained(tmp_path).config.autoregressive


@pytest.mark.parametrize("kind", [ResidualVQ, EncodecVQ])
def test_codebooks_mix(kind: type) -> None:
    """All weight on one code is that code; half and half lies half way; fewer codebooks give a coarser sum."""
    vq = kind(3, 16, 5)
    a, b = (torch.randint(16, (2, 7, 3)) for _ in range(2))
    one, other = (torch.nn.functional.one_hot(c, 16).float() for c in (a, b))
    torch.testing.assert_close(vq.decode(one), vq.decode(a))
    torch.testing.assert_close(vq.decode((one + other) / 2), (vq.decode(a) + vq.decode(b)) / 2)
    torch.testing.assert_close(vq.decode(one[:, :, :2]), vq.decode(a[..., :2]))


def test_encodec_speaks_from_weights() -> None:
    codec = EncodecVoice(random_encodec())
    codes = torch.randint(codec.config.codebook_size, (1, 12, 2))
    weights = torch.nn.functional.one_hot(codes, codec.config.codebook_size).float()
    zeros = torch.zeros(1, 12)
    torch.testing.assert_close(codec.decode(weights, *[zeros] * 3)[0], codec.decode(codes, *[zeros] * 3)[0])
