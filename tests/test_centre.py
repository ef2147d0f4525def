"""Units heard relative to their speaker's mean: what it does to levels, and that a stream of it is still one stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_engine import RATE, cuts, pushed
from torch import Tensor

from vivavoce.changer import Changer
from vivavoce.engine import Settings
from vivavoce.lm import Source, VoiceLM, centre
from vivavoce.lm.centre import MEMORY, PRIOR, Centre
from vivavoce.lm.model import UnitEmbedding

UNITS = replace(tiny.UNITS, content_units=225, content_levels=[5, 3, 5, 3], expression_levels=[5, 3])
LEVELS = [*UNITS.content_levels, *UNITS.expression_levels]
LM = replace(tiny.LM, content_units=225, content_levels=UNITS.content_levels, expression_levels=[5, 3],
             autoregressive=False, centred=True)  # fmt: skip


@pytest.fixture(scope="module")
def changer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changer]:
    """A tiny model whose pitch tracker is not sure of anything: what it finds voiced at all shall count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(centre, "VOICED", 0.0)
        yield Changer.from_pretrained(tiny.build(tmp_path_factory.mktemp("centred"), 0, LM, UNITS), "float32")


def said(frames: int, seed: int = 0) -> Source:
    """Random units, two frames in three of them voiced."""
    g = torch.Generator().manual_seed(seed)
    expression = torch.stack([torch.randint(n, (1, frames), generator=g) for n in LM.expression_levels], -1)
    periodicity = (torch.arange(frames)[None] % 3 > 0).float()
    return Source(torch.randint(225, (1, frames), generator=g), expression,
                  torch.full((1, frames), 150.0), periodicity, torch.full((1, frames), -20.0))  # fmt: skip


def prompt(changer: Changer, name: str = "ada") -> tuple[Source, Tensor]:
    voice = changer.voice(name)
    return voice.source(), voice.codes[None, :, : LM.n_codebooks].long()


# ---- what it does -------------------------------------------------------------------------------------


def streamed(means: Centre, levels: Tensor, periodicity: Tensor, to: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
    """Frame by frame."""
    out = []
    for t in range(levels.shape[1]):
        moved, heard = means(levels[:, t : t + 1], periodicity[:, t : t + 1], to, heard)
        out.append(moved)
    return torch.cat(out, 1), heard


def test_a_source_is_moved_to_the_prompts_mean() -> None:
    """Its mean over voiced frames becomes the prompt's: the better it is known, the nearer; never out of bounds."""
    means, g = Centre([9, 9]), torch.Generator().manual_seed(0)
    levels = torch.randint(1, 4, (2, 900, 2), generator=g).float()
    voiced = (torch.rand(2, 900, generator=g) > 0.3).float()
    to = torch.tensor([[3.5, 5.0], [4.0, 4.5]])
    torch.testing.assert_close(means.mean(levels, voiced)[0], levels[0][voiced[0] > 0].mean(0))
    told, _ = streamed(means, levels, voiced, to, means.known(levels, voiced))
    learnt, _ = streamed(means, levels, voiced, to, means.start(2))
    n = int(voiced.sum(1).min())
    bias = PRIOR / (PRIOR + n) * 2.0  # middle 4 and own mean 2, in the proportion of what is known
    torch.testing.assert_close(means.mean(told, voiced), to - bias, atol=0.1, rtol=0)
    torch.testing.assert_close(learnt[:, 800:], told[:, 800:], atol=0.1, rtol=0)
    assert float((learnt[:, 0] - told[:, 0]).abs().min()) > 1.0
    out, _ = streamed(means, levels, voiced, to + 100.0, means.start(2))
    assert (out == 8.0).all()


def test_what_is_known_is_what_a_stream_has_learnt() -> None:
    means, g = Centre([5, 3]), torch.Generator().manual_seed(1)
    levels, voiced = torch.rand(1, 60, 2, generator=g), (torch.rand(1, 60, generator=g) > 0.5).float()
    _, heard = streamed(means, levels, voiced, torch.zeros(1, 2), means.start(1))
    known = means.known(levels, voiced)
    torch.testing.assert_close(known / known[:, :1], heard / heard[:, :1])
    assert float(known[0, 0]) == MEMORY and float(heard[0, 0]) == PRIOR + float(voiced.sum())


def test_only_voiced_frames_count_and_the_old_ones_are_forgotten() -> None:
    means = Centre([9])
    heard, to = means.start(1), torch.zeros(1, 1)
    torch.testing.assert_close(heard, torch.tensor([[PRIOR, 4 * PRIOR]]))
    _, same = streamed(means, torch.full((1, 7, 1), 8.0), torch.zeros(1, 7), to, heard)
    assert torch.equal(same, heard)
    assert torch.equal(means.mean(torch.full((1, 7, 1), 8.0), torch.zeros(1, 7)), means.middle[None])
    _, heard = streamed(means, torch.full((1, int(8 * MEMORY), 1), 8.0), torch.ones(1, int(8 * MEMORY)), to, heard)
    assert float(heard[0, 1] / heard[0, 0]) == pytest.approx(8.0, abs=0.01)
    assert float(heard[0, 0]) <= MEMORY + 1


@torch.no_grad()
def test_a_voice_that_is_all_offset_is_not_heard(changer: Changer) -> None:
    """The same levels, every one of a channel moved alike, and the mean known for sure: the same weights."""
    g = torch.Generator().manual_seed(1)
    levels = torch.stack([torch.rand(1, 30, generator=g) * (n - 2) for n in LEVELS], -1)
    away, lm, src = torch.tensor([0.7, 0.2, 0.5, 0.9, 0.3, 0.6]), changer.lm, said(30)

    def weights(x: Tensor) -> Tensor:
        own = MEMORY * torch.cat((torch.ones(1, 1), lm.centre.mean(x, src.periodicity)), 1)
        s = src._replace(content=x[..., :4], expression=x[..., 4:])
        return lm.generate(s, lm.start(*prompt(changer), own=own))[0]

    torch.testing.assert_close(weights(levels), weights(levels + away), atol=1e-5, rtol=0)
    assert float((weights(levels) - weights(levels.flip(1))).abs().max()) > 0.01


def test_embeddings_are_mixed_between_whole_levels() -> None:
    table = UnitEmbedding([5, 3], 8)
    a, b = table(torch.tensor([[1.0, 2.0]])), table(torch.tensor([[2.0, 2.0]]))
    for share in (0.25, 0.5, 0.75):
        torch.testing.assert_close(table(torch.tensor([[1.0 + share, 2.0]])), (1 - share) * a + share * b)


# ---- training -----------------------------------------------------------------------------------------


def test_a_stream_of_the_prompts_own_mean_is_what_training_sees(changer: Changer) -> None:
    """Nothing is moved in training, as prompt and source are of one speaker."""
    src, (p, codes), lm = said(47), prompt(changer), changer.lm
    state = lm.start(p, codes)
    still = lm.start(p, codes, own=torch.cat((torch.ones(1, 1), state.centre), 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(centre, "VOICED", 2.0)  # what is known stays what it is
        (weights, _), (moved, _) = (lm.generate(src, s) for s in (still, state))
    target = torch.randint(LM.codebook_size, (1, 47, LM.n_codebooks))
    nll, _ = lm(p, codes, src, target, target)
    picked = [-w.gather(-1, target[..., None])[..., 0].log() for w in (weights, moved)]
    torch.testing.assert_close(picked[0], nll, atol=1e-4, rtol=1e-4)
    assert float((picked[1] - nll).detach().abs().max()) > 0.01


def test_training_learns_the_mean_over_speakers() -> None:
    torch.manual_seed(0)
    lm, src = VoiceLM(LM).train(), said(20)
    src = Source(*(torch.cat((x, x)) for x in src))
    codes, before = torch.zeros(2, 20, LM.n_codebooks, dtype=torch.int64), lm.centre.middle.clone()
    want = lm.centre.mean(lm.levels(src), src.periodicity).mean(0)
    for _ in range(600):
        lm.centre.learn(lm.centre.mean(lm.levels(src), src.periodicity))
    torch.testing.assert_close(lm.centre.middle, want, atol=0.01, rtol=0)
    lm(src, codes, src, codes, codes)[0].mean().backward()
    assert not torch.equal(before, lm.centre.middle) and "centre.middle" in lm.state_dict()


# ---- streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@given(seed=st.integers(0, 1000))
def test_any_chunking_gives_the_same_bits(changer: Changer, guidance: float, seed: int) -> None:
    x, settings = tiny.voiced(0.2), Settings(guidance=guidance)
    whole = pushed(changer.stream("ada", RATE, settings), x, [len(x)])
    assert torch.equal(pushed(changer.stream("ada", RATE, settings), x, cuts(len(x), seed)), whole)


def test_a_known_speaker_is_known_from_the_first_frame(changer: Changer, tmp_path: Path) -> None:
    """`convert` hears the whole first; a stream that is told the same gives the same."""
    x = tiny.voiced(1.0)
    register, own = changer._scan(iter([x]), RATE)
    assert own is not None and own.shape == (1, 1 + len(LEVELS))
    stream = changer.stream("ada", RATE, Settings(source_register=register), own=own)
    told = pushed(stream, x, [len(x)])
    assert torch.equal(changer.convert(x, "ada", RATE)[0], told)
    learnt = pushed(changer.stream("ada", RATE, Settings(source_register=register)), x, [len(x)])
    assert float((learnt - told).abs().max()) > 1e-4


def test_a_swap_and_a_pause_keep_what_is_known_of_the_speaker(changer: Changer) -> None:
    stream, x = changer.stream("ada", RATE), tiny.voiced(1.0)
    stream.push(x)
    known = stream.snapshot().state.lm.heard
    assert float(known[0, 0]) > PRIOR + 10
    stream.swap("bela")
    after = stream.snapshot().state.lm
    assert torch.equal(after.heard, known)
    assert not torch.equal(after.centre, changer.lm.start(*prompt(changer)).centre)
    stream.pause()
    stream.push(x[:3200])
    rested = stream.snapshot().state.lm.heard
    stream.resume()
    assert torch.equal(stream.snapshot().state.lm.heard, rested) and float(rested[0, 0]) >= float(known[0, 0])
