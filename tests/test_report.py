"""`vivavoce report`: signals whose truth is known, through the whole command; hostile input; the page's promises."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sounds import RATE, available, voice, write

from vivavoce.cli import main
from vivavoce.core import audio
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.eval.catalogue import METRICS
from vivavoce.eval.pairs import Pair, pair_files
from vivavoce.eval.report import charts, compare, gate, pick, sample, svg, words
from vivavoce.eval.report.page import write_page
from vivavoce.eval.report.study import ends, kind, read, study

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
QUICK = "pitch,events"  # judges that load fast; level, pauses and seams are always measured
EMOTIONS = ("happy", "sad", "angry", "neutral", "fear")


def report(*args: object) -> int:
    return main(["report", *map(str, args)])


def rows_of(out: Path, rung: str = "converted") -> list[dict[str, str]]:
    with open(out / "clips.csv", encoding="utf-8", newline="") as f:
        return [r for r in csv.DictReader(f) if r["rung"] == rung]


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sung lines; converted: the same a major third higher (F0 times 1.25) at half the level. And its report."""
    pytest.importorskip("jinja2")
    available("pitch")
    root = tmp_path_factory.mktemp("ten")
    lines = []
    for i in range(10):
        seconds = 1.0 + 0.1 * i
        write(root / "src" / f"{i}.wav", voice(i, seconds))
        write(root / "out" / f"{i}.wav", 0.5 * voice(i, seconds, shift=1.25))
        lines.append({"id": str(i), "emotion": EMOTIONS[i % 5], "vocalisation": "laugh" if i < 4 else "none",
                      "speaker": f"s{i % 3}"})  # fmt: skip
    (root / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert report(root / "src", root / "out", "-o", root / "r", "--manifest", root / "m.jsonl", "--judges", QUICK) == 0
    return root


# numbers


def test_a_transposed_melody_is_found_and_costs_nothing(ten: Path) -> None:
    overall = summary_of(ten / "r")["overall"]
    assert overall["f0_shift"]["mean"] == pytest.approx(12 * math.log2(1.25), abs=0.3)
    kept = [float(r["f0_corr"]) > 0.98 for r in rows_of(ten / "r")]
    assert sum(kept) >= 8  # the tracker itself may slip an octave in a clip
    assert overall["level_shift"]["mean"] == pytest.approx(-6.02, abs=1.0)
    assert overall["length_equal"]["mean"] == 1.0


def test_numbers_of_ten_clips_agree_with_a_check_by_hand(ten: Path) -> None:
    """Levels by direct summation, frame by frame, and Pearson's formula; the mean of the ten is the summary's."""

    def levels(x: np.ndarray) -> np.ndarray:
        x = np.concatenate((np.zeros(320), x, np.zeros(320)))
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(640) / 640)
        powers = [np.sum((x[a : a + 640] * window) ** 2) / np.sum(window**2) for a in range(0, len(x) - 639, 320)]
        return 10 * np.log10(np.maximum(powers, 1e-10))

    by_hand = []
    for row in rows_of(ten / "r"):
        a, b = (audio.load(row[k])[0].numpy().astype(np.float64) for k in ("source", "converted"))
        assert float(row["peak"]) == pytest.approx(np.abs(b).max(), rel=1e-4)
        assert float(row["length_off"]) == (len(b) - len(a)) / RATE == 0
        u, v = levels(a), levels(b)
        v = np.maximum(v, v.max() - 60)
        loud = u > u.max() - 50
        u, v = u[loud] - u[loud].mean(), v[loud] - v[loud].mean()
        by_hand.append(float((u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum())))
        assert float(row["energy_corr"]) == pytest.approx(by_hand[-1], abs=2e-3)
    stat = summary_of(ten / "r")["overall"]["energy_corr"]
    assert stat["mean"] == pytest.approx(np.mean(by_hand), abs=1e-3) and stat["n"] == 10
    assert stat["low"] < stat["mean"] < stat["high"]


def test_identity_scores_one_and_shuffled_is_near_chance(ten: Path) -> None:
    rungs = summary_of(ten / "r")["rungs"]
    same, other = rungs["identity"]["overall"], rungs["shuffled"]["overall"]
    for key in ("f0_corr", "energy_corr", "voicing_f1", "length_equal"):
        assert same[key]["mean"] == pytest.approx(1.0), key
    assert same["f0_shift"]["mean"] == same["level_shift"]["mean"] == same["clicks"]["mean"] == 0.0
    assert abs(other["f0_corr"]["mean"]) < 0.4 and abs(other["energy_corr"]["mean"]) < 0.4


def test_groups_hold_their_clips(ten: Path) -> None:
    s = summary_of(ten / "r")
    assert {k: v["clips"] for k, v in s["kind"].items()} == {"emotional speech": 5, "laughs": 4, "neutral speech": 1}
    assert {k: v["clips"] for k, v in s["emotion"].items()} == dict.fromkeys(EMOTIONS, 2)
    mine = [float(r["f0_corr"]) for r in rows_of(ten / "r") if r["emotion"] == "sad"]
    assert s["emotion"]["sad"]["f0_corr"]["mean"] == pytest.approx(np.mean(mine), abs=1e-4)
    assert s["speakers"] == 3


def test_a_laugh_that_stays_goes_or_is_added(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    judge = available("events")
    laugh, speech = (audio.load(SAMPLES / f"{k}.flac", RATE)[0].numpy() for k in ("laugh", "speech-low"))
    if "laugh" not in list(judge.analyse(laugh)["fired"]):
        pytest.skip("the shipped tagger does not hear the sample's laugh")
    for name, a, b in (("kept", laugh, 0.5 * laugh), ("lost", laugh, speech[: len(laugh)]),
                       ("added", speech, np.concatenate((speech, laugh)))):  # fmt: skip
        write(tmp_path / "src" / f"{name}.wav", a)
        write(tmp_path / "out" / f"{name}.wav", b)
    assert report(tmp_path / "src", tmp_path / "out", "-o", tmp_path / "r", "--judges", "events") == 0
    found = {r["id"]: r for r in rows_of(tmp_path / "r")}
    assert float(found["kept"]["laugh_f1"]) == float(found["kept"]["event_kept"]) == 1.0
    assert float(found["kept"]["onset_ms"]) < 50
    assert float(found["lost"]["laugh_f1"]) == float(found["lost"]["event_kept"]) == 0.0
    assert float(found["added"]["length_off"]) == pytest.approx(len(laugh) / RATE)
    # without labels, what the tagger hears makes the groups
    html = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "what the tagger hears in each source" in html and "Heard in the source" in html


def test_a_swapped_speaker_shows_in_the_margin(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    available("speaker")
    low, high = SAMPLES / "speech-low.flac", SAMPLES / "speech-high.flac"
    assert report(low, high, "-o", tmp_path / "r", "--target", high, "--judges", "speaker") == 0
    (row,) = rows_of(tmp_path / "r")
    assert float(row["sim_target"]) == pytest.approx(1.0, abs=1e-3) and float(row["margin"]) > 0.1
    (same,) = rows_of(tmp_path / "r", "identity")
    assert float(same["sim_source"]) == pytest.approx(1.0, abs=1e-3) and float(same["margin"]) < -0.1


# what is bad about input


def test_bad_input_is_named_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("jinja2")
    good = voice(0, 1.0)
    for name, a, b in (("good", good, good), ("longer", good, np.concatenate((good, good))), ("silent", good, 0 * good),
                       ("short", good[:800], good[:800]), ("polish", good, good)):  # fmt: skip
        write(tmp_path / "src" / f"{name}.wav", a)
        write(tmp_path / "out" / f"{name}.wav", b)
    write(tmp_path / "src" / "alone.wav", good)
    write(tmp_path / "out" / "stray.wav", good)
    (tmp_path / "src" / "broken.wav").write_bytes(b"no audio at all")
    write(tmp_path / "out" / "broken.wav", good)
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "polish", "language": "pl"}))
    out = tmp_path / "r"
    judges = "pitch,phonemes" if find_spec("hama") else "pitch"
    assert report(tmp_path / "src", tmp_path / "out", "-o", out, "--manifest", tmp_path / "m.jsonl",
                  "--judges", judges) == 0  # fmt: skip
    err = capsys.readouterr().err
    assert "1 not converted, left out: alone" in err and "1 without a source, left out: stray" in err
    s = summary_of(out)
    assert s["not_measured"]["signal"] == {"converted silent": 1, "source too short": 1}
    assert s["not_measured"]["all"] == {"unreadable": 1}
    if "phonemes" in judges:
        assert s["not_measured"]["phonemes"]["does not know the language 'pl'"] == 1
    assert s["overall"]["energy_corr"]["n"] == 3 and s["overall"]["length_equal"]["n"] == 5
    found = {r["id"]: r for r in rows_of(out)}
    assert float(found["longer"]["length_off"]) == pytest.approx(1.0) and float(found["longer"]["energy_corr"]) > 0.95
    html = (out / "report.html").read_text(encoding="utf-8")
    for said in ("converted silent, 1 clip", "unreadable, 1 clip", "1 not converted, left out: alone"):
        assert said in html


def test_an_absent_judge_is_a_column_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2")
    for k in [k for k in sys.modules if k.split(".")[0] == "swift_f0"]:
        monkeypatch.delitem(sys.modules, k)
    monkeypatch.setitem(sys.modules, "swift_f0", None)
    for i in range(2):
        write(tmp_path / "src" / f"{i}.wav", voice(i, 0.8))
    args = (tmp_path / "src", tmp_path / "src", "-o", tmp_path / "r", "--judges", "pitch")
    assert report(*args) == 0
    html = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "pip install swift-f0" in html
    assert summary_of(tmp_path / "r")["overall"]["energy_corr"]["n"] == 2
    assert report(*args, "--fail-under", "f0_corr=0.5") == 3  # what was not measured does not pass


class Checker(HTMLParser):
    """Elements that are open, their handlers, and addresses that are no data."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.count: dict[str, int] = {}
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"] or ""
        for name, value in attrs:
            if name.startswith("on"):
                self.wrong.append(f"{tag} {name}={value}")
            if name in ("src", "href") and not (value or "").startswith(("data:", "#")):
                self.wrong.append(f"{tag} {name}={value}")
        if tag in ("iframe", "object", "embed", "link") and dict(attrs).get("rel") != "icon":
            self.wrong.append(tag)


HOSTILE = ("<script>alert(1)<", '"><img src=x onerror=alert(1)>', "' onload='alert(1)", "{{ 7*7 }}", "=SUM(A1)",
           "ü 漢字 \u202e")  # fmt: skip


def test_hostile_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2")
    lines = []
    for i, name in enumerate(HOSTILE):
        write(tmp_path / "src" / f"{name}.wav", voice(i, 0.7))
        lines.append({"id": name, "emotion": f"<b onclick=x>{i}</b>", "speaker": name})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "r"
    name = "</title><script>alert(2)</script>|pipe"
    assert report(tmp_path / "src", tmp_path / "src", "-o", out, "--manifest", tmp_path / "m.jsonl", "--judges", QUICK,
                  "--name", name) == 0  # fmt: skip
    html = (out / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert checker.wrong == [] and checker.count["script"] == 1 and checker.count["title"] >= 1
    assert "<script>alert" not in html and "49" not in re.findall(r"<h4[^>]*>([^<]*)</h4>", html)
    assert checker.policy.startswith("default-src 'none'") and "script-src 'sha256-" in checker.policy
    assert sorted(r["id"] for r in rows_of(out)) == sorted(HOSTILE)
    assert "\\|pipe" in (out / "summary.md").read_text(encoding="utf-8")


def test_pairs_may_be_named_by_a_manifest(tmp_path: Path) -> None:
    x = voice(0, 0.5)
    write(tmp_path / "src" / "a" / "one.wav", x)
    write(tmp_path / "out" / "take 2 v1.5.wav", x)
    write(tmp_path / "ref" / "ada.wav", x)
    line = {"id": "one", "path": "a/one.wav", "converted": "take 2 v1.5.wav", "target": "ada.wav", "emotion": "sad"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    found = pair_files(tmp_path / "src", tmp_path / "out", None, tmp_path / "ref", tmp_path / "m.jsonl")
    (pair,) = found.pairs
    assert (pair.converted.name, pair.target and pair.target.name) == ("take 2 v1.5.wav", "ada.wav")
    assert pair.fields == {"emotion": "sad"} and not found.only_source and not found.only_converted


def test_usage_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "src" / "a.wav", voice(0, 0.5))
    src, out = tmp_path / "src", tmp_path / "r"
    assert report(src, src, "-o", out, "--judges", "taste") == 1
    assert report(src, src, "-o", out, "--fail-under", "laughf1=0.8") == 1
    assert report(src, src, "-o", out, "--compare", tmp_path / "none.json") == 1
    assert report(src, tmp_path / "nowhere", "-o", out) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 4 and all(line.startswith("vivavoce: ") for line in err)
    assert "unknown judge 'taste'" in err[0] and "did you mean" in err[1] and "laugh_f1" in err[1]
    for wrong in ((src, "-o", out), (src, src, "-o", out, "--run")):
        with pytest.raises(SystemExit):
            report(*wrong)


# gate, comparison


def test_limits_follow_each_metrics_direction() -> None:
    overall = {"per": {"mean": 0.3}, "f0_corr": {"mean": 0.9}, "level_shift": {"mean": -2.0}, "margin": {"mean": None}}
    text = "per=0.2, f0_corr=0.8, level_shift=3, margin=0"
    verdicts = gate.check(gate.parse(text), {"overall": overall})
    assert [why for _, _, why in verdicts] == [
        "per is 0.30, wanted ≤ 0.2", None, None, "margin was not measured, wanted ≥ 0"]  # fmt: skip
    assert gate.check(gate.parse("level_shift=1"), {"overall": overall})[0][2] is not None
    for wrong, said in (("f0_cor=1", "did you mean f0_corr"), ("peak=1", "no good side"), ("per", "metric=number"),
                        (" ", "names no")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            gate.parse(wrong)


def test_the_gate_sets_the_exit_status_and_shows_on_the_page(ten: Path, capsys: pytest.CaptureFixture) -> None:
    args = (ten / "src", ten / "out", "-o", ten / "gate", "--judges", QUICK)
    assert report(*args, "--fail-under", "energy_corr=0.9,level_shift=8") == 0
    assert "Gate passed" in (ten / "gate" / "report.html").read_text()
    assert report(*args, "--fail-under", "f0_corr=0.9999") == 3
    assert "f0_corr is" in capsys.readouterr().err
    assert "Gate failed" in (ten / "gate" / "report.html").read_text()


def scored(values: np.ndarray, **more: object) -> list[dict]:
    return [{"id": str(i), "content": str(i), "f0_corr": float(v), **more} for i, v in enumerate(values)]


def test_paired_intervals_see_what_unpaired_ones_cannot() -> None:
    """Clips differ far more than the systems do; on the same clips the small difference shows."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 1, 60)
    ours, theirs = scored(hard + 0.02 + 0.005 * rng.standard_normal(60)), scored(hard)
    d = compare.difference(METRICS["f0_corr"], list(zip(ours, theirs)))
    assert d is not None and d.n == 60 and d.better is True
    assert d.low < 0.02 < d.high and d.high - d.low < 0.01
    assert d.mean == pytest.approx(d.ours - d.theirs)
    assert compare.difference(METRICS["f0_corr"], list(zip(theirs, theirs))).better is None  # type: ignore[union-attr]
    assert compare.difference(METRICS["f0_corr"], list(zip(ours[:1], theirs[:1]))) is None
    errors = [({"per": 0.1, "phonemes": 30.0}, {"per": 0.3, "phonemes": 30.0})] * 5
    assert compare.difference(METRICS["per"], errors).better is True  # type: ignore[union-attr] # less is better
    clips = ({"per": 0.0, "phonemes": 90.0}, {"per": 1.0, "phonemes": 10.0})
    pooled = [(c, c) for c in clips]
    assert compare.difference(METRICS["per"], pooled).ours == pytest.approx(0.1)  # type: ignore[union-attr]


def test_pooled_numbers_are_compared_too() -> None:
    label = {"emotion_label": "sad", "emotion_source": "sad"}
    pairs = [({**label, "emotion_converted": "sad"}, {**label, "emotion_converted": "sad" if i % 2 else "happy"})
             for i in range(40)]  # fmt: skip
    d = compare.difference(METRICS["emotion_uar"], pairs)
    assert d is not None and (d.ours, d.theirs) == (1.0, 0.5) and d.better is True and d.low < 0.5 < d.high


def test_compare_sets_two_reports_side_by_side(ten: Path, tmp_path: Path) -> None:
    """The rival keeps half the melody's range, has lost a clip, and was given another source for one."""
    for i in range(9):
        write(tmp_path / "out" / f"{i}.wav", voice(i + (20 if i else 0), 1.0 + 0.1 * i))
        write(tmp_path / "src" / f"{i}.wav", voice(i if i != 5 else 50, 1.0 + 0.1 * i))
    assert report(tmp_path / "src", tmp_path / "out", "-o", tmp_path / "rival", "--judges", QUICK,
                  "--name", "rival") == 0  # fmt: skip
    assert report(ten / "src", ten / "out", "-o", tmp_path / "r", "--judges", QUICK, "--name", "ours",
                  "--compare", tmp_path / "rival" / "summary.json") == 0  # fmt: skip
    html = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    said = " ".join(re.sub(r"<[^>]+>", " ", html[html.index('id="comparison"') : html.index('id="ladder"')]).split())
    assert "ours beside rival" in said and "On the 8 clips that both converted" in said
    assert "1 only here, 0 only there, 1 of the same name but another source" in said
    row = re.search(r"F0 correlation .*? ours", said)
    assert row is not None
    other = read(tmp_path / "rival")  # a folder will do
    assert other.name == "rival" and len(other.rows) == 9
    (tmp_path / "rival" / "clips.csv").unlink()
    with pytest.raises(CorpusError, match="keep the file beside it"):
        read(tmp_path / "rival" / "summary.json")
    (tmp_path / "rival" / "summary.json").write_text('{"overall": {}}')
    with pytest.raises(CorpusError, match="make that report anew"):
        read(tmp_path / "rival" / "summary.json")


# groups, choice, resuming


def test_kinds_of_clips() -> None:
    assert kind({"vocalisation": "none", "emotion": "calm"}) == "neutral speech"
    assert kind({"vocalisation": "", "emotion": "sad"}) == "emotional speech"
    assert kind({"vocalisation": "sob", "emotion": "sad"}) == "cries and sobs"
    assert kind({"vocalisation": "cough"}) == "other sounds" and kind({}) == kind({"emotion": "unknown"}) == ""


def test_best_and_worst_follow_the_rule(tmp_path: Path) -> None:
    for i in range(8):
        write(tmp_path / "src" / f"{i}.wav", voice(i, 0.9))
        write(tmp_path / "out" / f"{i}.wav", voice(i if i < 5 else i + 30, 0.9, shift=1.2))
    pairs = pair_files(tmp_path / "src", tmp_path / "out").pairs
    done = study("x", {"converted": pairs, **ends(pairs)}, tmp_path / "r", ("events",), progress=False)
    for row in done.rungs["converted"]:
        row["f0_corr"] = 1.0 - 0.1 * int(row["id"])
    for name, value in (("identity", 1.0), ("shuffled", 0.0)):
        done.summary["rungs"][name]["overall"]["f0_corr"] = {"mean": value, "n": 8}
    done.summary["overall"]["f0_corr"] = {"mean": 0.65, "low": 0.5, "high": 0.8, "n": 8}
    choice = pick.choose(done)
    assert {r["id"] for r, _ in choice.best} <= set("01234") and {r["id"] for r, _ in choice.worst} == set("567")
    assert [s for _, s in choice.best] == sorted((s for _, s in choice.best), reverse=True)


def test_judged_clips_are_not_judged_again(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vivavoce.eval.judges import PitchJudge

    before = rows_of(ten / "r")
    monkeypatch.setattr(PitchJudge, "analyse", lambda *_: pytest.fail("judged again"))
    args = ("-o", ten / "r", "--manifest", ten / "m.jsonl", "--judges", QUICK)
    assert report(ten / "src", ten / "out", *args) == 0
    assert rows_of(ten / "r") == before


def test_draw_is_even_seeded_and_no_one_is_their_own_target() -> None:
    clips = [{"id": f"{s}{i}", "speaker": s, "vocalisation": "laugh" if i % 2 else "none", "emotion": "neutral",
              "duration_s": 4.0} for s in "abcd" for i in range(10)]  # fmt: skip
    chosen = sample.draw(clips, 4, seed=1)
    assert len(chosen) == 8 and sorted(c["speaker"] for c in chosen) == sorted("abcd" * 2)
    assert chosen == sample.draw(clips[::-1], 4, seed=1) != sample.draw(clips, 4, seed=2)
    assert sample.draw(clips, None) == clips
    targets = sorted(sample.references(clips))
    assert targets == list("abcd")
    given = sample.assign([(c["id"], c["speaker"]) for c in clips], targets, 1)
    assert all(t != k[0] for k, t in given.items()) and set(given.values()) == set("abcd")
    assert sample.assign([("x", "a")], ["a"]) == {}


# pictures and words


def test_axes_put_the_good_side_right() -> None:
    rising, falling = svg.axis_for([0.2, 0.9], bounded=True), svg.axis_for([0.2, 0.9], True, True)
    assert (rising.left, rising.right, falling.left, falling.right) == (0.0, 1.0, 1.0, 0.0)
    assert svg.axis_for([-0.13, 0.9], bounded=True).left == -0.2
    wide = svg.axis_for([-7.7, 3.6]).moved(10, 100)
    assert wide.left <= -7.7 and wide.right >= 3.6 and wide.at(wide.left) == 10 and wide.at(99) == 110
    assert svg.axis_for([1.0, 1.0]).left < 1.0 and falling.ticks() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_profile_places_marks_by_value() -> None:
    axis = svg.axis_for([0, 1], bounded=True)
    stat = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 9}
    lines = [charts.Line("<all>", {"k": {"converted": stat, "identity": {**stat, "mean": 1.0}}}),
             charts.Line("none", {"k": {}})]  # fmt: skip
    text = charts.profile([charts.Panel("k", "K & L", axis)], lines, "t", width=292.0, label=178.0)
    assert "&lt;all&gt;" in text and "K &amp; L" in text and "n 9" in text
    (x,) = re.findall(r'mark-converted"><title>.*?</title><circle cx="([\d.]+)"', text)
    assert float(x) == pytest.approx(178 + 50, abs=0.1)
    assert re.search(r'd="M203.0 [\d.]+H253.0" class="bar bar-converted"', text)
    assert charts.profile([], lines, "t") == ""


def test_numbers_as_words() -> None:
    assert [words.figure(v) for v in (0.934, -0.061, 12.34, 250.2, None, float("nan"), -0.001)] == [
        "0.93", "−0.06", "12.3", "250", "–", "–", "0.00"]  # fmt: skip
    assert words.interval({"n": 0}) == "–" and words.count(1, "clip") == "1 clip"


def test_the_page_shrinks_to_its_budget(ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pair_files(ten / "src", ten / "out", manifest=ten / "m.jsonl").pairs
    done = study("x", {"converted": pairs, **ends(pairs)}, tmp_path, ("events",), progress=False)
    large = write_page(done, tmp_path).read_text()
    assert "data:audio/flac" in large and len(large) < 10_000_000
    monkeypatch.setattr("vivavoce.eval.report.page.MAX_BYTES", len(large) - 1)
    small = write_page(done, tmp_path).read_text()
    assert "data:audio/ogg" in small and "data:audio/flac" not in small and len(small) < len(large)


def test_files_of_a_report(ten: Path) -> None:
    names = {p.name for p in (ten / "r").iterdir()}
    assert names == {"report.html", "summary.json", "summary.md", "clips.csv", "judgements.sqlite"}
    table = (ten / "r" / "summary.md").read_text(encoding="utf-8").splitlines()
    assert {line.count("|") for line in table} == {table[0].count("|")} and "laughs" in table[0]
    run = summary_of(ten / "r")["run"]
    assert run["command"].startswith("vivavoce report") and "--judges pitch,events" in run["command"]
    assert set(summary_of(ten / "r")["metrics"]) >= {"f0_corr", "energy_corr"}


def test_one_clip_makes_a_page(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    a = write(tmp_path / "a.wav", voice(0, 0.8))
    done = study("x", {"converted": [Pair("a", a, a)], **ends([Pair("a", a, a)])}, tmp_path / "r", (), progress=False)
    assert "shuffled" not in done.summary["rungs"]
    assert write_page(done, tmp_path / "r").stat().st_size > 5000
