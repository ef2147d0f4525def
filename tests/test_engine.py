"""The whole chain on a tiny random model: one result in any chunking, true lengths and latency, bounded state."""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import ragged
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vivavoce
from vivavoce.changer import PROMPT_FRAMES, Changer
from vivavoce.core.errors import AudioError, CheckpointError, ConfigError, VivavoceError
from vivavoce.engine import Settings
from vivavoce.lm import LMConfig, LMState, Source, VoiceLM
from vivavoce.stream import KNEE, Stream, limit
from vivavoce.voice import Voice

HOP, RATE = 320, 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def changer(folder: Path) -> Changer:
    return vivavoce.load(folder)


def pushed(stream: Stream, x: Tensor, sizes: list[int]) -> Tensor:
    """All that comes out of a stream, chunk by chunk, tail included."""
    assert sum(sizes) == len(x)
    return torch.cat([*(stream.push(part) for part in x.split(sizes)), stream.flush()])


def cuts(n: int, seed: int) -> list[int]:
    """Ragged chunk sizes that add up to n, from single samples and empty chunks to several frames."""
    rng, sizes = random.Random(seed), []
    while sum(sizes) < n:
        sizes.append(min(n - sum(sizes), rng.choice((0, 1, 2, 7, 160, 320, 321, 999, 1764, 5000))))
    return sizes


def source() -> Tensor:
    """Voice, digital silence (longer than every look-ahead), a click, voice: 0.9 s at 16 kHz."""
    x = tiny.voiced(0.9)
    x[4000:9000] = 0.0
    x[8000] = 0.9
    return x


# ---- chunking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_any_chunking_gives_the_same_bits(changer: Changer, delay: int) -> None:
    x, settings = source(), Settings(seed=3, delay=delay, temperature=1.0, source_register=120.0)
    whole, rate = changer.convert(x, "ada", RATE, settings)
    assert rate == RATE and whole.shape == x.shape and float(whole.abs().max()) > 1e-3
    for seed in range(3):
        assert torch.equal(pushed(changer.stream("ada", RATE, settings), x, cuts(len(x), seed)), whole)
    singles = [1] * 700 + [len(x) - 700]
    assert torch.equal(pushed(changer.stream("ada", RATE, settings), x, singles), whole)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_any_chunking_while_resampling(changer: Changer, rate: int) -> None:
    x = tiny.voiced(0.5, rate)
    x[rate // 8 : rate // 4] = 0.0
    for settings in (Settings(temperature=1.0), Settings(seed=1, delay=1, transpose=2.5)):
        whole = pushed(changer.stream("bela", rate, settings), x, [len(x)])
        for seed in range(3):
            y = pushed(changer.stream("bela", rate, settings), x, cuts(len(x), seed))
            assert torch.equal(y, whole), float((y - whole).abs().max())


@given(data=st.data(), rate=st.sampled_from([11025, 16000, 32000]), delay=st.integers(0, 2))
def test_any_chunking_at_random(changer: Changer, data: st.DataObject, rate: int, delay: int) -> None:
    x, sizes = tiny.voiced(0.12, rate), []
    while sum(sizes) < len(x):
        sizes.append(data.draw(st.integers(0, len(x) - sum(sizes)) | st.integers(0, 50)))
        sizes[-1] = min(sizes[-1], len(x) - sum(sizes[:-1]))
        if len(sizes) > 40:
            sizes.append(len(x) - sum(sizes))
    settings = Settings(delay=delay)
    assert torch.equal(pushed(changer.stream("ada", rate, settings), x, sizes),
                       pushed(changer.stream("ada", rate, settings), x, [len(x)]))  # fmt: skip


def test_sampled_codes_do_not_depend_on_chunks(changer: Changer) -> None:
    frames, s = 40, Settings(temperature=1.0)
    src, voice = units(frames, tiny.LM), changer.voice("ada")
    whole, _ = changer.lm.generate(src, changer.lm.start(voice.source(), voice.codes[None]), 5, 1.0)
    state, out, at = changer.lm.start(voice.source(), voice.codes[None]), [], 0
    for n in ragged(frames):
        codes, state = changer.lm.generate(Source(*(t[:, at : at + n] for t in src)), state, 5, s.temperature)
        out.append(codes)
        at += n
    assert torch.equal(torch.cat(out, 1), whole)
    assert len(whole.unique()) > 5  # sampled, not stuck


def test_interleaved_streams_do_not_meet(changer: Changer) -> None:
    a, b = source(), tiny.voiced(0.9, f0=200.0, seed=1)
    apart = [pushed(changer.stream(v, RATE), x, [len(x)]) for v, x in (("ada", a), ("bela", b))]
    one, two, out = changer.stream("ada", RATE), changer.stream("bela", RATE), ([], [])
    for i in range(0, len(a), 500):
        out[0].append(one.push(a[i : i + 500]))
        out[1].append(two.push(b[i : i + 500]))
    together = [torch.cat([*o, s.flush()]) for o, s in zip(out, (one, two))]
    assert torch.equal(together[0], apart[0]) and torch.equal(together[1], apart[1])


def test_seeds(changer: Changer) -> None:
    x = source()
    a, b, c = (changer.convert(x, "ada", RATE, Settings(seed=s))[0] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_file_equals_samples(changer: Changer, tmp_path: Path) -> None:
    x = tiny.voiced(1.3, 22050)
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "x.wav", x.numpy(), 22050, subtype="FLOAT")
    y, rate = changer.convert(tmp_path / "x.wav", "ada")
    assert rate == 22050 and torch.equal(y, changer.convert(x, "ada", 22050)[0])
    for seconds in (0.01, 0.37):
        assert torch.equal(torch.cat(list(changer.convert_blocks(tmp_path / "x.wav", "ada", seconds=seconds))), y)
    assert changer.open(tmp_path / "x.wav", "ada").engine.delay == 1  # a file that is heard beforehand has the time
    assert changer.open(tmp_path / "x.wav", "ada", Settings(delay=0)).engine.delay == 0
    assert changer.open(tmp_path / "x.wav", "ada", scan=False).engine.delay == changer.stream("ada").engine.delay == 0
    live = torch.cat(list(changer.convert_blocks(tmp_path / "x.wav", "ada", scan=False)))
    assert torch.equal(live, pushed(changer.stream("ada", 22050), x, [len(x)]))


# ---- lengths, flush, reset, errors --------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_length_equality(changer: Changer, rate: int) -> None:
    x = tiny.voiced(0.3, rate)
    settings = Settings(source_register=120.0)
    lengths = {1, 2, 319, 320, 321, 639, 640, 641, 959, 960, 961, 2000, *random.Random(rate).sample(range(1, 2001), 16)}
    for n in sorted(lengths):
        stream = changer.stream("ada", rate, settings)
        first = stream.push(x[:n])
        tail = stream.flush()
        assert len(first) + len(tail) == n and len(first) <= n


def test_flush_and_reset(changer: Changer) -> None:
    x = source()
    stream = changer.stream("ada", RATE)
    assert len(changer.stream("ada", RATE).flush()) == 0
    whole = pushed(stream, x, [len(x)])
    assert len(stream.flush()) == 0
    with pytest.raises(AudioError, match="flushed"):
        stream.push(x)
    stream.reset()
    stream.push(x[:777])
    stream.reset()  # in the middle, too
    assert torch.equal(pushed(stream, x, cuts(len(x), 5)), whole)


def test_what_push_refuses(changer: Changer) -> None:
    x = source()
    stream, want = changer.stream("ada", RATE), pushed(changer.stream("ada", RATE), x, [len(x)])
    got = [stream.push(x[:5000])]
    for bad in (torch.tensor([0.0, float("nan")]), torch.tensor([float("inf")]), torch.zeros(2, 5), torch.zeros(())):
        with pytest.raises(AudioError):
            stream.push(bad)
    got.append(stream.push(x[5000:].numpy()))  # arrays will do; what was refused left no trace
    assert torch.equal(torch.cat([*got, stream.flush()]), want)
    got[0].mul_(0.5)  # an ordinary tensor
    with pytest.raises(AudioError, match="NaN"):
        changer.convert(torch.full((10,), float("nan")), "ada", RATE)
    with pytest.raises(AudioError, match="rate"):
        changer.convert(x, "ada")
    for rate in (0, 999, 10**6):
        with pytest.raises(AudioError, match="sample rate"):
            changer.stream("ada", rate)
    with pytest.raises(VivavoceError, match="0 to 2"):
        changer.stream("ada", RATE, Settings(delay=3))
    with pytest.raises(ConfigError, match="temperature"):
        Settings(temperature=float("nan"))


# ---- loudness and latency -----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16000, 44100])
def test_no_clipping(changer: Changer, rate: int) -> None:
    loud = torch.sign(tiny.voiced(0.6, rate)) * 4.0  # far above full scale
    for voice in ("ada", "bela"):
        y, _ = changer.convert(loud, voice, rate)
        assert float(y.abs().max()) <= 1.0 and bool(torch.isfinite(y).all())
        assert float(y.abs().max()) > 0.5


def test_limiter() -> None:
    x = torch.linspace(-5, 5, 10001)
    y = limit(x)
    assert bool((y.abs() <= 1.0).all()) and bool((y.diff() >= 0).all())
    quiet = x.abs() <= KNEE
    assert torch.equal(y[quiet], x[quiet])
    assert float((y.diff() / x.diff()).max()) <= 1.0 + 1e-3


@pytest.mark.parametrize(("rate", "delay"), [(16000, 0), (16000, 2), (8000, 1), (48000, 0)])
def test_latency_is_as_stated(changer: Changer, rate: int, delay: int) -> None:
    """The most that a stream owes, sample by sample, is what `latency.total` says."""
    stream = changer.stream("ada", rate, Settings(delay=delay))
    x, taken, given_, most = tiny.voiced(0.4, rate), 0, 0, 0
    step = rate // 8000
    for part in x.split(step):
        most = max(most, taken + len(part) - given_)  # just before this push is answered
        given_ += len(stream.push(part))
        taken += len(part)
    stated = stream.latency.total * rate / 1000
    assert stream.latency.total == pytest.approx(sum(v for k, v in stream.latency.__dict__.items()))
    assert stated - step - 2 <= most <= stated + step + 2
    if rate == 16000:
        assert stream.latency.total == 20 * (4 + delay)


@pytest.mark.parametrize(("rate", "delay"), [(16000, 0), (16000, 2), (44100, 1)])
def test_output_is_aligned_with_input(changer: Changer, rate: int, delay: int) -> None:
    """Where the input leaps from silence to voice, so does the output: at the same sample, within a frame."""
    onset, x = round(0.31 * rate), tiny.voiced(0.6, rate)
    x[:onset] = 0.0
    y, _ = changer.convert(x, "ada", rate, Settings(delay=delay, source_register=120.0))
    loud = float(y[onset:].square().mean().sqrt())
    start = int((y.abs() > 0.1 * loud).nonzero()[0])
    assert abs(start - onset) <= 0.02 * rate
    assert float(y[: onset - round(0.025 * rate)].abs().max()) < 0.05 * loud


def test_level_follows_the_source(changer: Changer) -> None:
    x = tiny.voiced(1.0)
    settings = Settings(temperature=0.0, source_register=120.0)
    a, b = (changer.convert(g * x, "ada", RATE, settings)[0].square().mean().sqrt() for g in (0.05, 0.1))
    assert 4.0 < 20 * torch.log10(b / a) < 8.0


# ---- long streams -------------------------------------------------------------------------------------


def test_long_stream_keeps_speaking(changer: Changer) -> None:
    """Past the ring's end and the register's memory: finite, neither silent nor looping."""
    x = tiny.voiced(25.0, 16000)
    y, _ = changer.convert(x, "ada", RATE, Settings(temperature=1.0))
    seconds = y.unflatten(0, (25, RATE))
    assert bool(torch.isfinite(y).all()) and float(seconds.square().mean(1).sqrt().min()) > 1e-3
    assert not torch.equal(seconds[-1], seconds[-2])


# ---- language model -----------------------------------------------------------------------------------


def units(frames: int, c: LMConfig, seed: int = 0) -> Source:
    """Random source units of one stream."""
    g = torch.Generator().manual_seed(seed)

    def u(scale: float) -> Tensor:
        return scale * torch.rand(1, frames, generator=g)

    expression = torch.stack([torch.randint(n, (1, frames), generator=g) for n in c.expression_levels], -1)
    return Source(torch.randint(c.content_units, (1, frames), generator=g), expression, 80 + u(200), u(1), -u(60))


def logits(lm: VoiceLM, *args: Any, **kw: Any) -> tuple[Tensor, Tensor]:
    """Teacher-forced pass -> logits [K, T, codebook_size], cross-entropy [B, T, K]."""
    kept: list[Tensor] = []
    hooks = [head.register_forward_hook(lambda m, i, o: kept.append(o[0])) for head in lm.depth]
    with torch.no_grad():
        loss, _ = lm(*args, **kw)
    for hook in hooks:
        hook.remove()
    return torch.stack(kept), loss


def shifted(codes: Tensor) -> Tensor:
    """Codes [B, T, K] -> those of the frame before; -1 before the first."""
    return torch.cat((torch.full_like(codes[:, :1], -1), codes[:, :-1]), dim=1)


@pytest.mark.parametrize("delay", [0, 2])
def test_streaming_equals_training(changer: Changer, delay: int) -> None:
    """Greedy codes, three rings long, are the argmax of the teacher-forced pass."""
    lm, frames = changer.lm, 3 * tiny.LM.context + 7
    prompt, src = changer.voice("ada"), units(frames, tiny.LM)
    own = (prompt.source(), prompt.codes[None, :, : tiny.LM.n_codebooks])
    codes, state = lm.generate(src, lm.start(*own), temperature=0.0, delay=delay)
    assert int(state.frame) == frames
    parallel, loss = logits(lm, *own, src, shifted(codes), codes, delay=delay)
    assert torch.equal(parallel.argmax(-1).T, codes[0])
    best = -parallel.log_softmax(-1).max(-1).values
    torch.testing.assert_close(loss[0], best.T, atol=1e-4, rtol=0)


def test_temperature_one_samples_the_model(changer: Changer) -> None:
    """The first frame's first code, over many seeds, has the distribution that the logits state."""
    lm, voice, src = changer.lm, changer.voice("ada"), units(1, tiny.LM)
    own = (voice.source(), voice.codes[None, :, : tiny.LM.n_codebooks])
    state, n = lm.start(*own), 600
    drawn = torch.stack([lm.generate(src, state.clone(), seed)[0][0, 0, 0] for seed in range(n)])
    none = torch.full((1, 1, tiny.LM.n_codebooks), -1)
    p = logits(lm, *own, src, none, none.clamp_min(0))[0][0, 0].softmax(-1)
    counts = torch.bincount(drawn, minlength=tiny.LM.codebook_size)
    chi2 = float(((counts - n * p).square() / (n * p)).sum())
    assert chi2 < 31 + 4 * (2 * 31) ** 0.5


def test_prompt_matters(changer: Changer) -> None:
    lm, src = changer.lm, units(12, tiny.LM)
    codes = torch.randint(tiny.LM.codebook_size, (1, 12, tiny.LM.n_codebooks))
    seen = []
    for name in ("ada", "bela"):
        v = changer.voice(name)
        own = (v.source(), v.codes[None, :, : tiny.LM.n_codebooks])
        seen.append(logits(lm, *own, src, shifted(codes), codes)[0])
    assert bool(((seen[0] - seen[1]).abs().amax((0, 2)) > 1e-3).all())  # at every frame, past the ring as well


def test_source_matters_and_future_does_not(changer: Changer) -> None:
    lm, v = changer.lm, changer.voice("ada")
    own = (v.source(), v.codes[None, :, : tiny.LM.n_codebooks])
    codes = torch.randint(tiny.LM.codebook_size, (1, 12, tiny.LM.n_codebooks))
    a, b = units(12, tiny.LM), units(12, tiny.LM, seed=1)
    mixed = Source(*(torch.cat((x[:, :6], y[:, 6:]), dim=1) for x, y in zip(a, b)))
    one, two = (logits(lm, *own, s, shifted(codes), codes)[0] for s in (a, mixed))
    torch.testing.assert_close(one[:, :6], two[:, :6], atol=1e-5, rtol=0)
    assert bool(((one - two)[:, 6:].abs().amax((0, 2)) > 1e-3).all())


def test_fork_of_a_stream(changer: Changer) -> None:
    lm, v, src = changer.lm, changer.voice("ada"), units(20, tiny.LM)
    _, state = lm.generate(src, lm.start(v.source(), v.codes[None]))
    kept = state.clone()
    a, _ = lm.generate(src, state)
    b, end = lm.generate(src, kept)
    assert torch.equal(a, b) and isinstance(end, LMState)


# ---- voices -------------------------------------------------------------------------------------------


def test_voice_round_trip(changer: Changer, tmp_path: Path) -> None:
    voice = changer.enroll(tiny.voiced(2.0, 22050), 22050, "Zoë", licence="CC0-1.0", consent="yes", note="n")
    voice.save(tmp_path / "z.voice")
    back = Voice.load(tmp_path / "z.voice")
    for k, v in voice.__dict__.items():
        same = torch.equal(getattr(back, k), v) if isinstance(v, Tensor) else getattr(back, k) == v
        assert same, k
    assert [p.name for p in tmp_path.iterdir()] == ["z.voice"] and (tmp_path / "z.voice").stat().st_size < 10_000
    x = source()
    assert torch.equal(changer.convert(x, voice, RATE)[0], changer.convert(x, tmp_path / "z.voice", RATE)[0])
    assert back.renamed("Y").name == "Y" and 1.0 < back.frames / 50 <= 2.0


def test_enrolling_picks_the_loud_part(changer: Changer) -> None:
    x = torch.cat((torch.zeros(RATE), 0.05 * tiny.voiced(6.0), tiny.voiced(4.0, seed=1), torch.zeros(5 * RATE)))
    voice = changer.enroll(x, RATE)
    assert voice.frames == PROMPT_FRAMES
    level = voice.source().level
    assert float(level.mean()) > -30.0


def test_foreign_voice_is_refused(changer: Changer) -> None:
    own = changer.voice("ada")
    with pytest.raises(CheckpointError, match="another model"):
        changer.stream(replace(own, tokeniser="0" * 16))
    with pytest.raises(CheckpointError, match="damaged"):
        changer.stream(replace(own, codes=own.codes + 10_000))
    with pytest.raises(VivavoceError, match="did you mean bela"):
        changer.stream("Bella")


# ---- safety -------------------------------------------------------------------------------------------


def test_nothing_unpickles() -> None:
    """No pickle, and no torch.load but with weights_only=True, anywhere in the package."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    root = Path(vivavoce.__file__).resolve().parent.parent
    rooms = [p for p in root.iterdir() if p.name in
             {"vivavoce", "core", "codec", "units", "lm", "recipes", "eval", "pretrained"}]  # fmt: skip
    files = [f for room in rooms for f in room.rglob("*.py")]
    assert len(files) > 25
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {getattr(node, "module", None) or "", *(a.name for a in node.names)}
                assert not {n.split(".")[0] for n in names} & banned, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                if called == "torch.load":
                    assert options.get("weights_only") == "True", path
                if called in ("np.load", "numpy.load"):
                    assert options.get("allow_pickle", "False") == "False", path
