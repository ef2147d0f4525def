"""What is no speech does not tell a speaker's register: units.speaking, its recipe, and registers that listen to it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import assert_same, in_chunks, ragged
from hypothesis import given
from hypothesis import strategies as st

from vivavoce import load
from vivavoce.changer import SCAN_SECONDS, Changer, fingerprint, model_folder
from vivavoce.core import audio
from vivavoce.core.errors import CheckpointError, CorpusError
from vivavoce.engine import Settings, _steer
from vivavoce.fit import scale_of
from vivavoce.guidance import begin
from vivavoce.recipes import speaking as recipe
from vivavoce.recipes.corpus import Pack
from vivavoce.units import load_units
from vivavoce.units.prosody import MODES, REGISTERS, Pitches, Register, speaking_register
from vivavoce.units.speaking import Speaking, SpeakingConfig

pytest_plugins = ["sung"]
LEVELS = [3, 2]
SOUNDS = Path(__file__).parents[1] / "samples"
SAMPLES = {"speech-low.flac": True, "speech-high.flac": True, "laugh.flac": False, "sob.flac": False}


def fitted(memory: float = 4.0) -> Speaking:
    made = Speaking(SpeakingConfig("", math.prod(LEVELS), LEVELS, memory))
    with torch.no_grad():
        made.table.copy_(torch.tensor([2.0, 0.0, -2.0, 1.0, -1.0]))
        made.bias.fill_(0.5)
    return made


def test_odds_are_a_fading_mean_over_voice_of_what_digits_say() -> None:
    content, voiced = torch.tensor([[0, 1, 5, 4]]), torch.tensor([[0.0, 1.0, 1.0, 0.0]])  # digits 00, 01, 21, 20
    odds, _ = fitted()(content, voiced)
    first, second = 2.0 - 1.0, -2.0 - 1.0
    after = (0.75 * first + second) / 1.75
    assert_same(odds, 0.5 + torch.tensor([[0.0, first, after, after]]), 1e-6)


def test_a_class_is_a_unit_of_one_digit() -> None:
    made = Speaking(SpeakingConfig("", 7))
    with torch.no_grad():
        made.table[3] = 1.5
    odds, _ = made(torch.tensor([[3, 3, 0]]), torch.ones(1, 3))
    assert odds[0, 1] == 1.5 and odds[0, 2] < 1.5


def test_odds_any_chunking_equals_one_call() -> None:
    content, voiced = torch.randint(0, 6, (2, 200)), (torch.rand(2, 200) > 0.3).float()
    whole, state = fitted()(content, voiced)
    for seed in range(3):
        assert_same(in_chunks(fitted(), (content, voiced), ragged(200, seed=seed)), whole, 1e-6)
    empty, same = fitted()(content[:, :0], voiced[:, :0], state)
    assert empty.shape == (2, 0) and same == state


# ---------------------------------------------------------------- registers


def kinds(*runs: tuple[float, int, bool]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Runs of F0, frames and whether it is speech -> F0, periodicity, speaking [1, T]."""
    f0 = torch.cat([torch.full((n,), hz) for hz, n, _ in runs])[None]
    speaking = torch.cat([torch.full((n,), s) for _, n, s in runs])[None]
    return f0, torch.ones_like(f0), speaking


def both(*runs: tuple[float, int, bool], home: float = 110.0) -> list[float]:
    """The register in Hz that a file has, and a stream at its end."""
    x = kinds(*runs)
    return [speaking_register(*(y[0] for y in x), home), 2 ** float(Register(home=home)(*x)[0][0, -1])]


def test_who_does_not_speak_keeps_the_pitch() -> None:
    """Where a voice is to have register 110 Hz, a cry is measured against that, and so comes out where it was, in files
    and in streams, though some frames seem to be speech; speech as high is measured against its own register."""
    assert both((450.0, 150, False)) == pytest.approx([110.0, 110.0], rel=1e-4)
    for mistaken in (2, 8, 15):  # of 150 frames
        assert both((450.0, 150 - mistaken, False), (450.0, mistaken, True))[0] == pytest.approx(110.0, rel=0.05)
    for spoken in (30, 100):  # and a word among laughs is one
        assert both((380.0, 70, False), (220.0, spoken, True))[0] > 180.0
    assert both((270.0, 200, True))[0] == pytest.approx(270.0, rel=0.02)
    assert min(both((230.0, 1, True))) > 180.0  # from its first frame on
    known = Register(200.0, 110.0)(*kinds((450.0, 20, False)))[0]
    assert_same(known, torch.full_like(known, math.log2(200.0)), 1e-5)


def test_speech_tells_the_register_whatever_else_is_heard() -> None:
    for runs in ([(120.0, 100, True), (420.0, 300, False)], [(420.0, 300, False), (120.0, 100, True)]):
        assert both(*runs, home=250.0)[0] == pytest.approx(120.0, rel=0.03)
    assert both((120.0, 100, True), (420.0, 300, False), home=250.0)[1] == pytest.approx(120.0, rel=0.03)


def test_a_laugh_leaves_the_register_of_a_stream_where_speech_put_it() -> None:
    before, laughing = Register()(*kinds((120.0, 500, True)))[0], kinds((120.0, 500, True), (360.0, 500, False))
    assert_same(Register()(*laughing)[0][:, 500:], before[:, -1:].expand(1, 500), 1e-6)


def test_a_cry_that_seemed_speech_at_first_is_put_right_at_once_or_in_a_pause() -> None:
    """Its melody is bent by nothing but the first frames; and what is voiced and no speech moves nothing later."""
    for seemed in (1, Register.FREE):
        early = Register(home=110.0)(*kinds((450.0, seemed, True), (450.0, 60, False)))[0].exp2()[0]
        assert early[:seemed].min() > 200.0
        assert_same(early[seemed:], torch.full((60,), 110.0), 1e-3)
    late = kinds((450.0, 30, True), (450.0, 1000, False), (450.0, 80, False), (450.0, 10, False))
    late[1][:, 1030:1110] = 0.0  # a breath
    register = Register(home=110.0)(*late)[0].exp2()[0]
    assert torch.equal(register[30:1030], register[30:31].expand(1000)) and register[30] > 200.0
    assert register[-1] < 130.0


@given(st.floats(60, 900), st.integers(1, 300), st.integers(0, 300), st.floats(60, 400))
def test_what_is_used_lies_between_home_and_what_is_believed(hz: float, n: int, other: int, home: float) -> None:
    heard = Pitches()
    for speaking in [True] * n + [False] * other:
        heard = heard.plus(math.log2(hz), speaking)
    assert heard == pytest.approx(Pitches(n * math.log2(hz), n, other))
    assert 0.8 * min(hz, MODES[0][1]) <= 2 ** heard.register() <= max(hz, MODES[1][1]) * 1.001
    low, high = sorted((home, min(max(2 ** heard.register(), REGISTERS[0]), REGISTERS[1])))
    assert 0.999 * low <= 2 ** heard.used(math.log2(home)) <= 1.001 * high
    assert heard.plus(0.0, False).said()[1] > heard.said()[1]  # the more is no speech, the less the rest counts


# ---------------------------------------------------------------- the embedded default, and other models


@pytest.mark.parametrize(("name", "speech"), SAMPLES.items())
def test_the_embedded_default_tells_speech_from_laughs_and_sobs(name: str, speech: bool) -> None:
    changer = load()
    x, rate = audio.load(SOUNDS / name)
    assert rate == 16000 and changer.speaking is not None
    content, _, units, _ = changer.tokenise(x)
    voiced = units[:, 1] > 7
    odds, _ = changer.speaking(content[None], voiced[None].float())
    right = ((odds[0, voiced] > 0) == speech).float().mean()
    assert right > (0.9 if name != "sob.flac" else 0.5)  # which is our model's output, and begins like a vowel


def copy_of(model: Path, folder: Path) -> Path:
    return shutil.copytree(model, folder, ignore=shutil.ignore_patterns("__pycache__"))


def test_a_model_without_it_takes_all_for_speech(tmp_path: Path) -> None:
    folder = copy_of(model_folder(), tmp_path / "model")
    x, rate = audio.load(SOUNDS / "sob.flac")
    before = load(folder)._register_of(iter([x]), rate)
    shutil.rmtree(folder / "speaking")
    bare = load(folder)
    assert bare.speaking is None and abs(bare._register_of(iter([x]), rate) / before - 1.0) > 0.01


def test_streams_listen_to_it_and_any_chunking_gives_the_same() -> None:
    changer = load()
    x, rate = audio.load(SOUNDS / "sob.flac")

    def live(sizes: list[int]) -> torch.Tensor:
        stream = changer.stream("bruno", rate)
        return torch.cat([*(stream.push(part) for part in x.split(sizes)), stream.flush()])

    whole, pieces = live([len(x)]), live([777, 5000, len(x) - 5777])
    assert torch.equal(whole, pieces)
    changer.speaking = None
    assert not torch.equal(live([len(x)]), whole)


def test_what_is_no_speech_has_neither_fit_nor_guidance() -> None:
    """A voice is fitted to somebody speaking, and the way from a source learnt from such (experiments, no. 85)."""
    changer = load()
    voice, scale, books = changer.voice("bruno"), scale_of(changer.codec), changer.codec.quantiser
    torch.manual_seed(0)
    weights, own = torch.rand(1, 6, 4, 1024).softmax(-1), torch.randn(1, 6, len(scale.centre))
    way = begin(len(scale.centre), voice.strangers)

    def said(speech: float, fit: float, guidance: float) -> torch.Tensor:
        heard, shares = (own, torch.ones(1, 6), way), torch.tensor((fit, guidance, 0.5), dtype=torch.float64)
        return _steer(books, scale, weights, torch.full((1, 6), speech), (voice.fit,), heard, shares)[0]

    assert_same(said(0.0, 1.0, 0.6), said(1.0, 0.0, 0.0), 1e-6)
    assert (said(0.0, 1.0, 0.6) - said(1.0, 1.0, 0.6)).abs().max() > 0.01
    x, rate = audio.load(SOUNDS / "laugh.flac")
    heard = []
    for odds in (-100.0, 100.0):
        with torch.no_grad():
            changer.speaking.table.zero_()
            changer.speaking.bias.fill_(odds)
        heard.append([changer.convert(x, "bruno", rate, Settings(fit=fit))[0] for fit in (0.0, 1.0)])
    assert torch.equal(*heard[0]) and not torch.equal(*heard[1])
    changer.speaking = None
    assert torch.equal(changer.convert(x, "bruno", rate, Settings())[0], heard[1][1])


def test_who_speaks_only_after_the_scanned_minute_is_still_learnt() -> None:
    """A long file that begins without a word: the scan knows nothing of its register, and does not say that it does."""
    changer = load()
    x, rate = audio.load(SOUNDS / "laugh.flac")
    wordless = torch.cat((x, torch.zeros(round(SCAN_SECONDS * rate))))
    speech = audio.load(SOUNDS / "speech-low.flac")[0]
    voice = changer.voice("livia")  # a high one
    for y, known in ((wordless, False), (wordless[: len(x) + rate], True), (torch.cat((speech, wordless)), True)):
        settings, _ = changer._scan(iter([y]), rate, voice, Settings())
        assert (settings.source_register is not None) == known
    assert 12 * abs(math.log2(settings.source_register / voice.register)) > 3


def test_one_of_other_units_is_refused(tmp_path: Path) -> None:
    folder = copy_of(model_folder(), tmp_path / "model")
    config = json.loads((folder / "speaking" / "config.json").read_text())
    config["config"]["units"] = "0123456789abcdef"
    (folder / "speaking" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"speaking/ is of other units.*recipes.speaking"):
        Changer.from_pretrained(folder)


# ---------------------------------------------------------------- recipe


@pytest.fixture
def labelled(pack: Pack, tmp_path: Path) -> Path:
    """The toy pack with every other clip called a laugh."""
    folder = shutil.copytree(pack.folder, tmp_path / "pack")
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for i, clip in enumerate(lines):
        clip["vocalisation"] = ("none", "laugh")[i // 3 % 2]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(c) + "\n" for c in lines))
    return folder


def test_the_recipe_fits_what_the_module_computes(labelled: Path, models, tmp_path: Path, capsys) -> None:
    model = tmp_path / "model"
    shutil.copytree(models.units, model / "units")
    made = recipe.make_speaking(model, labelled)
    assert "of voiced frames" in capsys.readouterr().out
    again = Speaking.from_pretrained(model / "speaking")
    assert again.config == made.config and again.config.units == fingerprint(model, ("units",))
    assert torch.equal(again.table, made.table) and made.table.abs().max() > 0
    clip = Pack(labelled).split("train")[0]
    content, periodicity = recipe.heard(load_units(model / "units").eval(), Pack(labelled), clip)
    with torch.no_grad():
        features = torch.from_numpy(recipe.described(made, content, periodicity))
        odds = made(content, periodicity)[0][:, periodicity[0] > 0.5]
        assert_same((features @ made.table + made.bias)[None], odds, 1e-4)


def test_the_recipe_needs_both_kinds(pack: Pack, models, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(models.units, tmp_path / "units")
    monkeypatch.setattr(recipe, "CLASS_OF", {"none": "speech"})
    with pytest.raises(CorpusError, match="train clips of both"):
        recipe.make_speaking(tmp_path, pack.folder)
    assert not (tmp_path / "speaking").exists()
