"""eval/: metrics, pairing, the report's numbers and pictures on signals whose truth is known; no corpus needed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sounds import RATE, available, voice, write

from vivavoce.core.errors import AudioError, CorpusError
from vivavoce.eval import metrics, seams
from vivavoce.eval.catalogue import CATALOGUE, METRICS
from vivavoce.eval.judges import kind_of
from vivavoce.eval.measure import DEFAULT_JUDGES, Pair, Panel, measure, pair_files

CHEAP = ("events",)  # needs no package


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


def test_f0_range_is_halved_with_the_melody():
    semitones = 6 * np.sin(np.arange(200) / 9)
    hz, on = 200 * 2 ** (semitones / 12), np.ones(200, bool)
    flatter = 320 * 2 ** (semitones / 24)
    assert metrics.f0_range(hz, on, 1.5 * hz, on) == pytest.approx(0.0, abs=1e-9)
    assert metrics.f0_range(hz, on, flatter, on) == pytest.approx(-1.0)
    assert math.isnan(metrics.f0_range(hz, on, np.full(200, 150.0), on))


def words(gaps: list[float], seconds: float = 0.5) -> np.ndarray:
    """Sung notes with silences between them, as frame levels in dB."""
    x = [voice(0, seconds)]
    for i, gap in enumerate(gaps, 1):
        x += [np.zeros(int(gap * RATE), np.float32), voice(i, seconds)]
    return metrics.levels(np.concatenate(x))


def test_pauses_are_long_silences_between_sounds():
    level = words([0.5, 0.1])
    found = metrics.runs(metrics.pauses(level))
    assert len(found) == 1 and found[0] * 0.02 == pytest.approx([0.5, 1.0], abs=0.06)
    assert metrics.pause_f1(level, level) == (1.0, 2 * int(np.diff(found[0])[0]))
    assert metrics.pause_f1(level, words([0.02, 0.1]))[0] == 0.0  # the pause is gone
    assert metrics.pause_f1(level, words([0.25, 0.1]))[0] == pytest.approx(2 / 3, abs=0.05)
    assert math.isnan(metrics.pause_f1(level[:10], level[:10])[0])
    assert not metrics.pauses(np.r_[np.full(50, -90.0), np.zeros(20), np.full(50, -90.0)]).any()


def bursts(rate_hz: float, seconds: float = 4.0) -> np.ndarray:
    """Levels of a voice that pulses `rate_hz` times a second by 20 dB."""
    return -20 + 10 * np.sin(2 * np.pi * rate_hz * np.arange(0, seconds, 0.02))


def test_rate_counts_syllable_like_peaks():
    assert abs(metrics.nuclei(bursts(3.0)) - 12) <= 1
    assert metrics.nuclei(np.full(100, -20.0)) == 1
    assert metrics.rate_change(bursts(2.0), bursts(4.0)) == pytest.approx(1.0, abs=0.1)
    assert metrics.rate_change(bursts(3.0), bursts(3.0, 8.0)) == pytest.approx(0.0, abs=0.15)
    assert math.isnan(metrics.rate_change(bursts(3.0), np.full(100, -20.0)))


def test_noise_in_silence_is_measured_against_the_loudest_frame():
    rng = np.random.default_rng(0)
    x = np.concatenate((voice(0, 1.0), 1e-4 * rng.standard_normal(RATE).astype(np.float32)))
    y = x + np.r_[np.zeros(RATE), 1e-3 * rng.standard_normal(RATE)].astype(np.float32)
    a, b = metrics.levels(x), metrics.levels(y)
    assert metrics.silence_rise(a, a) == 0.0 == metrics.silence_rise(a, metrics.levels(0.5 * x)).__round__(6)
    assert metrics.silence_rise(a, b) == pytest.approx(20, abs=0.5)
    assert math.isnan(metrics.silence_rise(a[:50], b[:50]))
    quiet = metrics.silence(a)
    assert not quiet[:52].any() and quiet[56:].all()


def test_voice_in_silence_counts_silent_frames_only():
    silent, on = np.arange(100) >= 60, np.arange(100) < 50
    assert metrics.voiced_in_silence(silent, on, on) == (0.0, 40)
    assert metrics.voiced_in_silence(silent, on, np.arange(100) < 70) == (0.25, 40)
    assert math.isnan(metrics.voiced_in_silence(silent[:65], on[:65], on[:65])[0])


def test_onset_error_of_matched_events():
    a = {"laugh": [(0.0, 1.0), (2.0, 3.0)]}
    late = {"laugh": [(0.1, 1.0), (2.3, 3.0)]}
    assert metrics.onset_error(a, late) == (pytest.approx(200.0), 2)
    assert metrics.onset_error(a, {"laugh": [(0.1, 1.0)]}) == (pytest.approx(100.0), 1)
    assert math.isnan(metrics.onset_error(a, {"cry": [(0.0, 1.0)]})[0])


def test_uar_weighs_rare_labels_like_common_ones():
    labels, said = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 0])
    assert metrics.uar(labels, said) == pytest.approx(0.375)
    assert metrics.uar(labels, labels) == 1.0
    s = metrics.pooled(metrics.uar, np.repeat(labels, 40), np.repeat(said, 40))
    assert s["low"] < 0.375 < s["high"] and s["n"] == 200


# seams


def test_an_inserted_click_is_counted_and_the_voice_is_not():
    x = voice(3, 2.0)
    y = x.copy()
    for at in (5000, 12000, 20000):
        y[at] += 0.5
    own = seams.roughness(x)
    assert own.shape == (2000,)
    assert seams.clicks(own, own) == 0.0
    assert seams.clicks(own, seams.roughness(y)) == pytest.approx(1.5)
    assert seams.clicks(seams.roughness(y), seams.roughness(y)) == 0.0  # the source clicks as well


@pytest.mark.parametrize("period", [40.0, 37.5])
def test_seams_show_at_the_period_of_the_chunks_only(period):
    x = voice(3, 3.0)
    y = x.copy()
    for at in np.arange(1, int(3000 / period)) * period * 16:
        y[int(at) :] += np.float32(0.004) * (-1) ** int(at)  # a small step at each border
        y[int(at)] += 0.01
    a, b = seams.roughness(x), seams.roughness(y)
    assert seams.seam(a, a, period) == 0.0
    assert seams.seam(a, b, period) > 6
    assert seams.seam(a, b, 53.0) < 4
    assert math.isnan(seams.seam(a[:100], b[:100], period))


def test_jumps_of_level():
    x = voice(2, 2.0)
    y = x.copy()
    y[16000:18000] *= 0.01
    a, b = metrics.levels(x), metrics.levels(y)
    assert seams.level_jumps(a, a) == 0.0 == seams.level_jumps(a, metrics.levels(0.1 * x))
    assert 0.5 <= seams.level_jumps(a, b) <= 2.0


# catalogue


def test_catalogue_names_everything_once_and_explains_it():
    assert len(METRICS) == len(CATALOGUE)
    kinds = {*(kind_of(k) for k in DEFAULT_JUDGES), "signal", "pair", "words"}
    for m in CATALOGUE:
        assert m.title and m.how.endswith(".") and m.judge in kinds, m.key
        assert m.columns, m.key


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


def test_shuffled_emotions_fall_to_chance_and_identity_keeps_all(tmp_path, monkeypatch):
    """A classifier that reads the emotion off the pitch stands in: the sums are under test, not its ears."""
    from vivavoce.eval.judges.emotion import EmotionJudge

    def by_pitch(self, wave):
        bins = np.abs(np.fft.rfft(wave[:RATE]))[50:1000]
        return np.eye(len(self.labels))[self.labels.index("happy" if bins.argmax() > 150 else "sad")]

    monkeypatch.setattr(EmotionJudge, "probabilities", by_pitch)
    t = np.arange(RATE) / RATE
    pairs = []
    for i in range(8):
        x = 0.3 * np.sin(2 * np.pi * (400 if i % 2 else 100) * t).astype(np.float32)
        path = write(tmp_path / f"{i}.wav", x)
        other = tmp_path / f"{i - i % 2 if i < 4 else i}.wav"  # the first two happy ones come out sad
        pairs.append(Pair(str(i), path, other, None, {"emotion": "happy" if i % 2 else "sadness", "speaker": str(i)}))
    s = measure(pairs, ("emotion",), baselines=True, progress=False).summary
    assert s["overall"]["emotion_same"]["mean"] == 0.75
    assert s["overall"]["emotion_uar_source"]["mean"] == 1.0 == s["identity"]["emotion_uar_kept"]["mean"]
    assert s["overall"]["emotion_uar"]["mean"] == 0.75 == s["overall"]["emotion_uar_kept"]["mean"]
    assert s["emotion"]["happy"]["emotion_uar"]["mean"] == 0.5
    assert s["metrics"]["emotion_uar_kept"]["rows"] == "labelled"
