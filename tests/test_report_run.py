"""`vivavoce report --run` and `--ladder`: a tiny model converts folders and corpora before they are judged."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import tiny
import torch
from sounds import voice, write

from vivavoce.changer import Changer
from vivavoce.cli import main
from vivavoce.core import audio
from vivavoce.core.errors import VivavoceError
from vivavoce.eval.judges import JudgeError
from vivavoce.eval.pairs import Pair
from vivavoce.rungs import cascade, codec_only, make

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three speakers, in test two clips each, one of them in a tar shard; ids that are no file names; one broken."""
    root, lines = tmp_path / "corpus", []
    for i, (speaker, split) in enumerate((s, p) for s in "abc" for p in ("test", "test", "train")):
        seconds, emotion, vocalisation = (0.8, "sad", "sob") if i % 3 else (3.2, "neutral", "none")
        path = write(root / f"{i}.wav", voice(i, seconds))
        line = {"id": f"{speaker}/../{i}", "path": path.name, "speaker": speaker, "split": split, "emotion": emotion,
                "duration_s": seconds, "vocalisation": vocalisation}  # fmt: skip
        if i == 1:
            with tarfile.open(root / "shard.tar", "w") as tar:
                tar.add(path, path.name)
            path.unlink()
            line["shard"] = "shard.tar"
        lines.append(line)
    (root / "broken.wav").write_bytes(b"no audio")
    lines.append({"id": "broken", "path": "broken.wav", "speaker": "a", "split": "test"})
    (root / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def report(*args: object) -> int:
    return main(["report", *map(str, args), "--judges", "events"])


def test_a_corpus_is_converted_into_other_speakers(corpus: Path, model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r"
    assert report(corpus, "-o", out, "--run", "--model", model, "--seed", 3) == 0
    assert "broken.wav: cannot be read" in capsys.readouterr().err
    s = json.loads((out / "summary.json").read_text())
    assert s["clips"] == 6 and s["speakers"] == 3 and s["run"]["seed"] == 3 and s["run"]["targets"] > 1
    assert {k: v["clips"] for k, v in s["kind"].items()} == {"cries and sobs": 3, "neutral speech": 3}
    assert {p.name for p in (out / "targets").iterdir()} == {"a.wav", "b.wav", "c.wav"}
    made = json.loads((out / "converted" / "made.json").read_text())
    files = sorted((out / "converted").glob("*.wav"))
    assert len(files) == 6 and {f.stem for f in files} == set(made["targets"])
    assert all(name[0] != target for name, target in made["targets"].items())
    for f in files:
        a, b = audio.load(out / "sources" / f.name)[0], audio.load(f)[0]
        assert len(a) == len(b) and not torch.equal(a, b)

    # what is there stays: only the clip that is gone is made again, with the same bits
    first = files[0].read_bytes()
    files[0].unlink()
    times = [f.stat().st_mtime_ns for f in files[1:]]
    assert report(corpus, "-o", out, "--run", "--model", model, "--seed", 3) == 0
    assert files[0].read_bytes() == first and [f.stat().st_mtime_ns for f in files[1:]] == times
    # other settings would mix two systems in one folder
    assert report(corpus, "-o", out, "--run", "--model", model, "--seed", 4) == 1
    assert "made with other settings" in capsys.readouterr().err


def test_split_limit_and_voice_choose(corpus: Path, model: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "r"
    args = (corpus, "-o", out, "--run", "--model", model)
    assert report(*args, "--split", "train", "--voice", "ada,bela", "--limit", 2) == 0
    s = json.loads((out / "summary.json").read_text())
    assert {k: v["clips"] for k, v in s["kind"].items()} == {"cries and sobs": 2}
    assert {p.name for p in (out / "targets").iterdir()} <= {"ada.wav", "bela.wav"}
    assert report(*args, "--split", "dev") == 1
    assert "there are: test, train, all" in capsys.readouterr().err


def test_a_plain_folder_with_every_rung(model: Path, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "src" / "deep" / f"{i}.wav", voice(i, 0.6))
    write(tmp_path / "src" / "x.flac", voice(9, 0.6), 22050)
    out = tmp_path / "src" / "r"  # inside the folder: what is written is not converted again
    for _ in range(2):
        assert report(tmp_path / "src", "-o", out, "--run", "--model", model, "--ladder") == 0
    s = json.loads((out / "summary.json").read_text())
    assert s["clips"] == 4 and {"identity", "codec", "live", "shuffled"} <= set(s["rungs"])
    assert audio.load(out / "codec" / "x.wav")[1] == 22050
    assert s["rungs"]["codec"]["overall"]["length_equal"]["mean"] == 1.0
    assert "cascade" in s["rungs"] or any("cascade" in n for n in s["notes"])
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "codec only" in html and "What each step costs" in html


def test_the_ladder_of_someone_elses_folder(model: Path, tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / "src" / f"{i}.wav", voice(i, 0.6))
        write(tmp_path / "out" / f"{i}.wav", voice(i, 0.6, shift=1.1))
    args = (tmp_path / "src", tmp_path / "out", "-o", tmp_path / "r", "--ladder", "--model")
    assert report(*args, model) == 0
    assert "codec" in json.loads((tmp_path / "r" / "summary.json").read_text())["rungs"]
    shutil.rmtree(tmp_path / "r")
    assert report(*args, tmp_path / "none") == 0
    notes = json.loads((tmp_path / "r" / "summary.json").read_text())["notes"]
    assert any(n.startswith("rung codec is missing") for n in notes)


def test_codec_only_is_as_long_as_its_source_at_any_rate(model: Path) -> None:
    one = codec_only(Changer.from_pretrained(model))
    for rate, n in ((16000, 9123), (44100, 20001), (8000, 4000)):
        y = one(tiny.voiced(n / rate, rate)[:n], rate, Pair("x", Path("x"), Path("x")))
        assert y.shape == (n,) and bool(torch.isfinite(y).all())


def test_one_clip_that_fails_does_not_end_a_rung(tmp_path: Path) -> None:
    pairs = [Pair(k, write(tmp_path / f"{k}.wav", voice(0, 0.3)), tmp_path / "none") for k in "ab"]

    def one(x, rate, pair):
        if pair.id == "a":
            raise VivavoceError("no such thing")
        return x

    made = make("rung", one, pairs, tmp_path / "out", {"v": 1})
    assert [p.id for p in made.pairs] == ["b"] and made.notes == ["rung: a left out (no such thing)"]


def test_the_cascade_speaks_in_the_targets_register(tmp_path: Path) -> None:
    try:
        one = cascade()
    except JudgeError as e:
        pytest.skip(str(e))
    sample = Path(__file__).resolve().parents[1] / "samples" / "speech-low.flac"
    x, rate = audio.load(sample)
    y = one(x, rate, Pair("x", sample, sample))
    assert float(y.abs().max()) > 0.01
