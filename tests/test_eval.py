"""eval/: metrics, judges, tagger, report and pictures on signals whose truth is known; no corpus needed."""

from __future__ import annotations

import csv
import json
import math
import sys

import numpy as np
import pytest
import torch

from vivavoce.core import audio
from vivavoce.core.errors import AudioError, CheckpointError, CorpusError
from vivavoce.eval import metrics
from vivavoce.eval.__main__ import main
from vivavoce.eval.judges import JUDGES, RATE, JudgeError, make
from vivavoce.eval.measure import Pair, Panel, measure, pair_files, table
from vivavoce.eval.tagger import EVENTS, LABELS, STEM, Tagger, TaggerConfig, load_tagger

CHEAP = ("events",)  # needs no package


def voice(seed: int, seconds: float = 1.6, shift: float = 1.0) -> np.ndarray:
    """A sung line: harmonics under three formants; melody and level follow `seed`, F0 is times `shift`."""
    rng = np.random.default_rng(seed)
    n = int(RATE * seconds)
    knots = np.linspace(0, n, 9)
    hz = shift * 180 * 2 ** np.interp(np.arange(n), knots, rng.uniform(-0.5, 0.5, 9))
    level = 10 ** (np.interp(np.arange(n), knots, rng.uniform(-30, -6, 9)) / 20)
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    formants = rng.uniform((300, 900, 2200), (900, 2000, 3200))
    x = np.zeros(n)
    for h in range(1, 16):
        gain = sum(1 / (1 + ((h * hz - f) / 120) ** 2) for f in formants) + 0.02
        x += np.where(h * hz < 6000, gain, 0.0) * np.sin(h * phase)
    x = level * x / np.abs(x).max() + 1e-4 * rng.standard_normal(n)
    return x.astype(np.float32)


def write(path, wave: np.ndarray, rate: int = RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.save(path, torch.from_numpy(wave), rate)
    return path


@pytest.fixture
def folders(tmp_path):
    """Three sources, converted = the same at half level; c.wav is missing, d.wav too many."""
    for i, name in enumerate("abc"):
        write(tmp_path / "src" / f"{name}.wav", voice(i, 1.0))
    for name, i in (("a", 0), ("b", 1), ("d", 3)):
        write(tmp_path / "out" / f"{name}.wav", 0.5 * voice(i, 1.0))
    return tmp_path


# metrics


def test_edit_distance_of_known_words():
    assert metrics.edit_distance("kitten", "sitting") == 3
    assert metrics.edit_distance("", "abc") == 3
    assert metrics.error_rate("abcd", "abcd") == 0.0
    assert metrics.error_rate("abcd", "") == 1.0
    assert math.isnan(metrics.error_rate("ab", "ab"))


def test_f0_correlation_ignores_transposition_and_counts_common_frames():
    hz = 200 * 2 ** np.sin(np.arange(100) / 9)
    on = np.arange(100) < 60
    r, n = metrics.f0_correlation(hz, on, 1.7 * hz, np.ones(100, bool))
    assert r == pytest.approx(1.0) and n == 60
    assert metrics.f0_shift(hz, on, 2.0 * hz, on) == pytest.approx(12.0)
    assert metrics.f0_correlation(hz, on, 1 / hz, on)[0] == pytest.approx(-1.0)


def test_correlations_that_say_nothing_are_nan():
    flat, on = np.full(50, 150.0), np.ones(50, bool)
    assert math.isnan(metrics.f0_correlation(flat, on, flat, on)[0])
    assert math.isnan(metrics.f0_correlation(flat[:5], on[:5], flat[:5], on[:5])[0])
    assert metrics.f0_correlation(flat, ~on, flat, on)[1] == 0
    assert math.isnan(metrics.voicing_f1(~on, ~on))
    assert math.isnan(metrics.energy_correlation(np.empty(0), np.empty(0))[0])


def test_voicing_f1_counts_a_missing_end_as_unvoiced():
    assert metrics.voicing_f1(np.ones(100, bool), np.ones(50, bool)) == pytest.approx(2 / 3)


def test_energy_correlation_follows_the_envelope_not_the_gain():
    x = voice(0)
    a = metrics.levels(x)
    assert metrics.energy_correlation(a, metrics.levels(0.1 * x))[0] > 0.999
    assert metrics.level_shift(a, metrics.levels(0.1 * x)) == pytest.approx(-20, abs=0.1)
    swapped = np.concatenate((x[len(x) // 2 :], x[: len(x) // 2]))
    assert metrics.energy_correlation(a, metrics.levels(swapped))[0] < 0.6
    inverse = x / np.maximum(np.abs(np.convolve(np.abs(x), np.ones(800) / 800, "same")), 1e-3) ** 2
    assert metrics.energy_correlation(a, metrics.levels(1e-2 * inverse))[0] < -0.5


def test_level_of_a_full_scale_sine():
    x = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert metrics.levels(x)[5:-5] == pytest.approx(-3.01, abs=0.02)


def test_event_f1_needs_label_and_overlap():
    a = {"laugh": [(0.0, 1.0), (2.0, 3.0)], "cry": []}
    assert metrics.event_f1(a, a) == (1.0, 4)
    assert metrics.event_f1(a, {"laugh": [(0.0, 0.9)], "cry": [(2.0, 3.0)]}) == (0.5, 4)
    assert metrics.event_f1(a, {"laugh": [(0.6, 1.6)]})[0] == 0.0
    assert math.isnan(metrics.event_f1({"laugh": []}, {})[0])


def test_bootstrap_interval_covers_weights_and_nan():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 1.0, 400)
    s = metrics.bootstrap(np.r_[values, np.nan])
    assert s["n"] == 400 and s["low"] < 3.0 < s["high"]
    assert s["high"] - s["low"] == pytest.approx(4 / math.sqrt(400), rel=0.2)
    assert metrics.bootstrap(values) == metrics.bootstrap(values)
    assert metrics.bootstrap(np.array([1.0, 0.0]), np.array([3.0, 1.0]))["mean"] == 0.75
    assert metrics.bootstrap(np.array([np.nan]))["n"] == 0


# judges


def available(name: str):
    """The judge, or a skipped test (importorskip fails on Resemblyzer where webrtcvad is absent)."""
    try:
        return make(name)
    except JudgeError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("name", list(JUDGES))
def test_card_of_every_judge(name):
    card = JUDGES[name]
    assert card.name == name and card.licence and card.columns and card.min_seconds > 0


def test_an_unknown_judge_names_those_there_are():
    with pytest.raises(JudgeError, match="speaker, phonemes, pitch, events"):
        make("taste")


PACKAGES = [("speaker", "resemblyzer"), ("phonemes", "hama"), ("pitch", "swift_f0")]


@pytest.mark.parametrize("name, module", PACKAGES)
def test_an_absent_package_says_how_to_get_it_and_the_rest_goes_on(name, module, monkeypatch, folders):
    for k in [k for k in sys.modules if k.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, k)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(JudgeError, match=f"judge '{name}' is not available.*pip install"):
        make(name)
    result = measure(pair_files(folders / "src", folders / "out").pairs, (name,), progress=False)
    assert "pip install" in result.summary["judges"][name]["absent"]
    assert result.summary["overall"]["energy_corr"]["n"] == 2
    assert "pip install" in table(result.summary)


def test_speaker_judge_identity_and_strangers():
    judge = available("speaker")
    assert "webrtcvad" not in sys.modules or hasattr(sys.modules["webrtcvad"], "Vad")
    a, b = judge.analyse(voice(0)), judge.analyse(voice(1, shift=1.8))
    assert np.linalg.norm(a) == pytest.approx(1.0, abs=1e-4)
    same = judge.compare(a, a, a)
    assert same["sim_target"] == pytest.approx(1.0, abs=1e-5)
    assert same["margin"] == pytest.approx(0.0, abs=1e-5)
    other = judge.compare(a, b, b)
    assert other["margin"] == pytest.approx(1.0 - other["sim_source"], abs=1e-5) and other["margin"] > 0.1
    assert "margin" not in judge.compare(a, b)


def test_speaker_judge_does_not_hear_level():
    judge = available("speaker")
    a, b = judge.analyse(0.1 * voice(0)), judge.analyse(0.01 * voice(0))
    assert float(a @ b) == pytest.approx(1.0, abs=1e-4)


def test_phoneme_judge_identity_is_zero():
    judge = available("phonemes")
    heard = judge.analyse(voice(2, 3.0))
    assert heard == judge.analyse(voice(2, 3.0))
    assert judge.compare(tuple("həloʊ"), tuple("həloʊ"))["per"] == 0.0
    assert judge.compare(tuple("həloʊ"), tuple("həlp"))["per"] == pytest.approx(2 / 5)


def test_pitch_judge_transposed_shuffled_and_silent():
    judge = available("pitch")
    heard = [judge.analyse(voice(s, 2.0)) for s in range(6)]
    higher = judge.compare(heard[0], judge.analyse(voice(0, 2.0, shift=1.5)))
    assert higher["f0_corr"] > 0.98 and higher["voicing_f1"] > 0.9
    assert higher["f0_shift"] == pytest.approx(12 * math.log2(1.5), abs=0.2)
    chance = [judge.compare(heard[i], heard[j])["f0_corr"] for i in range(6) for j in range(i)]
    assert abs(np.nanmean(chance)) < 0.35
    nothing = judge.compare(heard[0], judge.analyse(np.zeros(RATE, np.float32)))
    assert math.isnan(nothing["f0_corr"]) and nothing["voicing_f1"] == 0.0


# tagger


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return load_tagger()


def test_shipped_tagger_is_small_and_declares_labels_and_scores(tagger):
    assert STEM.with_suffix(".safetensors").stat().st_size < 2e6
    assert sum(p.numel() for p in tagger.parameters()) < 500_000
    assert set(tagger.thresholds) == set(LABELS) and "speech" in LABELS and "laugh" in EVENTS
    for split in ("valid", "test"):
        scores = tagger.card["scores"][split]
        assert 1 / 6 < scores["uar"] <= 1 and all(scores[k]["n"] > 0 for k in LABELS)
    assert not any("NC" in x for x in tagger.card["train_licences"])


def test_tags_are_probabilities_and_ignore_level(tagger):
    x = voice(0, 1.3)
    a, b = tagger.tag(x), tagger.tag(0.01 * x)
    assert tuple(a.scores) == LABELS and a.label in LABELS and set(a.fired) <= set(LABELS)
    assert a.frames.shape == (math.ceil(1.3 / 0.04), len(LABELS))
    assert all(0 <= v <= 1 for v in a.scores.values())
    assert np.allclose(list(a.scores.values()), list(b.scores.values()), atol=1e-3)


def test_padding_in_a_batch_changes_nothing(tagger):
    x = torch.from_numpy(voice(1, 1.0))[None]
    mel = tagger.spectrum(x)
    padded = torch.cat((mel, torch.full((1, 31, mel.shape[2]), 3.0)), 1)
    with torch.no_grad():
        a, _ = tagger(mel, torch.tensor([50]))
        b, _ = tagger(padded, torch.tensor([50]))
    assert torch.allclose(a, b, atol=1e-5)


def test_spans_close_gaps_and_drop_blips(tagger):
    tags = tagger.tag(voice(0, 2.0))
    k = LABELS.index("laugh")
    tags.frames[:, k] = 0.0
    tags.frames[[*range(5, 10), *range(12, 20), 40], k] = 0.9
    tags.fired = ("laugh",)
    assert tags.spans("laugh") == [pytest.approx((0.2, 0.8))]
    assert tags.spans("cry") == []


def test_tagger_round_trip_and_foreign_files(tmp_path):
    torch.manual_seed(0)
    small = Tagger(TaggerConfig(dim=16, depth=1)).eval()
    small.save(tmp_path / "t", torch.float32)
    again = load_tagger(tmp_path / "t")
    assert again.tag(voice(0, 0.5)).scores == small.tag(voice(0, 0.5)).scores
    with pytest.raises(CheckpointError, match="missing"):
        load_tagger(tmp_path / "absent")
    card = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps({**card, "labels": ["laugh"]}))
    with pytest.raises(CheckpointError, match="other labels"):
        load_tagger(tmp_path / "t")


def test_event_judge_keeps_what_stays_and_loses_what_goes():
    judge = make("events")
    heard = judge.analyse(voice(0, 1.0))
    heard.fired = ("laugh",)
    heard.frames[:, LABELS.index("laugh")] = 1.0
    calm = judge.analyse(voice(0, 1.0))
    calm.fired = ("speech",)
    same = judge.compare(heard, heard)
    assert same["event_kept"] == 1.0 and same["event_f1"] == 1.0
    lost = judge.compare(heard, calm)
    assert lost["event"] == "laugh" and lost["event_kept"] == 0.0 and lost["event_f1"] == 0.0
    added = judge.compare(calm, heard)
    assert math.isnan(added["event_kept"]) and added["event_f1"] == 0.0


def test_tagger_recipe_trains_exports_and_resumes(tmp_path):
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from vivavoce.recipes.train_tagger import TaggerRecipe, run
    from vivavoce.recipes.trainer import TrainConfig

    kinds = ["laugh", "sob", "sigh", "scream", "groan", "none"]
    with open(tmp_path / "audio.i16", "wb") as f, open(tmp_path / "manifest.jsonl", "w") as manifest:
        for i in range(18):
            f.write((voice(i, 0.5)[: 25 * 320] * 32767).astype(np.int16).tobytes())
            line = {"id": str(i), "vocalisation": kinds[i % 6], "split": ("train", "valid", "test")[i // 6],
                    "offset": 25 * i, "frames": 25}  # fmt: skip
            manifest.write(json.dumps(line) + "\n")
    np.zeros((18 * 25, 2), np.float32).tofile(tmp_path / "pitch.f32")
    np.zeros(18 * 25, np.uint16).tofile(tmp_path / "teacher.u16")
    (tmp_path / "pack.json").write_text(json.dumps({"format": 1, "sample_rate": RATE, "hop": 320}))
    config = TaggerRecipe(pack=str(tmp_path), model=TaggerConfig(dim=16, depth=1), batch_size=4,
                          train=TrainConfig(out=str(tmp_path / "run"), steps=3, threads=1))  # fmt: skip
    assert 0 <= run(config)["uar"] <= 1
    model = load_tagger(tmp_path / "run" / "export" / "tagger")
    assert model.card["scores"]["test"]["n"] == 6 and model.card["train_clips"]["cry"] == 1


# report


def test_pairs_are_found_and_strays_are_named(folders):
    found = pair_files(folders / "src", folders / "out")
    assert [p.id for p in found.pairs] == ["a", "b"]
    assert (found.only_source, found.only_converted) == (["c"], ["d"])
    with pytest.raises(CorpusError, match="no such file or folder"):
        pair_files(folders / "nowhere", folders / "out")
    write(folders / "other" / "x.wav", voice(0, 0.5))
    with pytest.raises(CorpusError, match="must keep its source's name"):
        pair_files(folders / "src", folders / "other")
    write(folders / "src" / "a.flac", voice(0, 0.5))
    with pytest.raises(CorpusError, match="same name but suffix"):
        pair_files(folders / "src", folders / "out")


def test_two_files_make_a_pair_whatever_their_names(folders):
    found = pair_files(folders / "src" / "a.wav", folders / "out" / "d.wav")
    assert [(p.source.name, p.converted.name) for p in found.pairs] == [("a.wav", "d.wav")]


def test_silent_short_and_broken_clips_are_counted_not_fatal(tmp_path):
    good = write(tmp_path / "good.wav", voice(0, 1.0))
    silent = write(tmp_path / "silent.wav", np.zeros(RATE, np.float32))
    short = write(tmp_path / "short.wav", voice(0, 0.05))
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    pairs = [Pair(p.stem, good, p) for p in (good, silent, short, tmp_path / "broken.wav")]
    result = measure(pairs, CHEAP, progress=False)
    assert result.summary["overall"]["energy_corr"]["n"] == 1
    assert result.summary["not_measured"]["signal"] == {"converted silent": 1, "converted too short": 1}
    assert result.summary["not_measured"]["all"] == {"unreadable": 1}
    assert result.rows[1]["peak"] == 0.0 and result.rows[1]["length_equal"] == 1.0
    assert result.rows[2]["length_equal"] == 0.0 and result.rows[2]["length_off"] == pytest.approx(-0.95)
    assert "converted silent" in table(result.summary)


def test_length_is_judged_in_the_files_own_rates(tmp_path):
    x = voice(0, 1.0)
    a = write(tmp_path / "a.wav", x)
    b = write(tmp_path / "b.wav", np.repeat(x, 3), 48000)
    assert Panel(()).measure(Pair("x", a, b))["length_equal"] == 1.0


def test_identity_and_shuffled_stand_at_the_ends_of_the_scale(tmp_path):
    for i in range(6):
        write(tmp_path / "src" / f"{i}.wav", voice(i, 1.2))
        write(tmp_path / "out" / f"{i}.wav", 0.7 * voice(i, 1.2, shift=1.4))
    pairs = pair_files(tmp_path / "src", tmp_path / "out").pairs
    s = measure(pairs, CHEAP, baselines=True, progress=False).summary
    assert s["identity"]["energy_corr"]["mean"] == pytest.approx(1.0)
    assert s["overall"]["energy_corr"]["mean"] > 0.8
    assert s["shuffled"]["energy_corr"]["mean"] < 0.5


def test_report_files_groups_and_targets(folders):
    manifest = folders / "m.jsonl"
    lines = [{"id": "a", "emotion": "happy", "vocalisation": "laugh"},
             {"id": "z", "path": "x/b.opus", "emotion": "sad"}]  # fmt: skip
    manifest.write_text("\n".join(map(json.dumps, lines)))
    out = folders / "report"
    args = [str(folders / "src"), str(folders / "out"), "-o", str(out), "--manifest", str(manifest)]
    assert main([*args, "--judges", "events"]) == 0
    rows = list(csv.DictReader((out / "clips.csv").open(newline="")))
    found = [(r["id"], r["emotion"], r["vocalisation"]) for r in rows]
    assert found == [("a", "happy", "laugh"), ("b", "sad", "")]
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert set(summary["emotion"]) == {"happy", "sad"}
    assert set(summary["vocalisation"]) == {"laugh", "unknown"}
    assert summary["overall"]["level_shift"]["mean"] == pytest.approx(-6.02, abs=0.05)
    assert summary["judges"]["events"]["licence"] == "Apache-2.0"
    assert sorted(p.name for p in out.iterdir()) == ["clips.csv", "summary.json"]


def test_every_judge_in_one_report(folders):
    for name in ("speaker", "phonemes", "pitch"):
        available(name)
    pairs = pair_files(folders / "src", folders / "out", target=folders / "out" / "d.wav").pairs
    laugh = Pair("laugh", pairs[0].source, pairs[0].converted, None, {"vocalisation": "laugh"})
    pairs = [*pairs, laugh]
    result = measure(pairs, progress=False)
    assert result.summary["not_measured"] == {"phonemes": {"no words": 1}, "speaker": {"no target": 1}}
    overall = result.summary["overall"]
    assert overall["sim_source"]["mean"] > 0.98
    assert overall["margin"]["n"] == 2 and overall["margin"]["mean"] < 0
    assert overall["f0_corr"]["mean"] > 0.99


def test_command_line_errors_are_one_line(folders, capsys):
    src, out, report = (str(folders / k) for k in ("src", "out", "r"))
    assert main([src, str(folders / "nowhere"), "-o", report]) == 2
    assert main([src, out, "-o", report, "--judges", "taste"]) == 2
    assert main([src, out, "-o", report, "--target", str(folders / "absent.wav")]) == 2
    err = capsys.readouterr().err
    assert err.count("vivavoce: ") == 3
    assert "unknown judge 'taste'" in err and "absent.wav: no such file" in err
    assert not (folders / "r").exists()


def test_picture_is_small_and_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    from vivavoce.eval.plots import MAX_BYTES, draw

    noise = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    a, b = write(tmp_path / "a.wav", voice(0, 1.5)), write(tmp_path / "b.wav", noise)
    size = draw(a, b, tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    assert len(data) == size < MAX_BYTES and data.startswith(b"\x89PNG")
    with pytest.raises(AudioError, match=r"absent\.wav"):
        draw(tmp_path / "absent.wav", b, tmp_path / "q.png")
