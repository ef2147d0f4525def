"""The rungs that need no converter: identity, shuffled, and the cascade through text."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
from sounds import RATE, available, voice, write

from vivavoce.core import audio
from vivavoce.core.errors import CorpusError
from vivavoce.eval import baselines
from vivavoce.eval.judges import JudgeError
from vivavoce.eval.measure import measure, pair_files


@pytest.fixture
def sources(tmp_path):
    for i in range(6):
        write(tmp_path / "src" / ("deep" if i % 2 else ".") / f"{i}.wav", voice(i, 1.0))
    return tmp_path / "src"


@pytest.mark.parametrize("n", [2, 3, 7, 50])
def test_a_derangement_moves_everything(n):
    order = baselines.derangement(n, seed=3)
    assert sorted(order) == list(range(n)) and not (order == np.arange(n)).any()
    assert (order == baselines.derangement(n, seed=3)).all()


def test_identity_scores_one_and_shuffled_falls(sources, tmp_path):
    same = baselines.identity(sources, tmp_path / "identity")
    other = baselines.shuffled(sources, tmp_path / "shuffled", seed=1)
    found = [measure(pair_files(sources, x).pairs, ("events",), progress=False) for x in (same, other)]
    a, b = (x.summary["overall"] for x in found)
    assert a["energy_corr"]["mean"] == 1.0 == a["length_equal"]["mean"] and a["clicks"]["mean"] == 0.0
    assert b["energy_corr"]["mean"] < 0.5
    sounds = {p.read_bytes() for p in sources.rglob("*.wav")}
    assert {p.read_bytes() for p in other.rglob("*.wav")} == sounds
    assert all((sources / p.relative_to(other)).read_bytes() != p.read_bytes() for p in other.rglob("*.wav"))
    one = write(tmp_path / "one" / "a.wav", voice(0, 0.5)).parent
    with pytest.raises(CorpusError, match="one clip cannot be shuffled"):
        baselines.shuffled(one, tmp_path / "x")


def cascade_or_skip():
    try:
        return baselines.Cascade()
    except JudgeError as e:
        pytest.skip(str(e))


def test_cascade_keeps_words_and_its_own_timing(tmp_path):
    parts = cascade_or_skip()
    said, rate = parts.say("one two three four five", "en-us+m3")
    source = write(tmp_path / "src" / "count.wav", said.numpy(), rate)
    write(tmp_path / "src" / "hum.wav", np.zeros(RATE, np.float32))
    write(tmp_path / "high" / "count.wav", voice(0, 1.0, shift=1.6))
    available("pitch")
    out = baselines.cascade(tmp_path / "src", tmp_path / "out", targets=tmp_path / "high", progress=False)
    heard = (out / "count.txt").read_text().split()
    assert {"two", "three", "four", "five"} & set(heard)
    y, found = audio.load(out / "count.wav")
    assert found == audio.load(source)[1] and float(y.abs().max()) > 0.05 and len(y) != len(said)
    silence, _ = audio.load(out / "hum.wav")
    assert len(silence) == RATE and not silence.any() and (out / "hum.txt").read_text() == "\n"
    before = (out / "count.wav").stat().st_mtime_ns
    baselines.cascade(tmp_path / "src", out, progress=False)
    assert (out / "count.wav").stat().st_mtime_ns == before  # resumed: nothing is made twice
    assert parts.register(tmp_path / "high" / "count.wav") == "high"
    assert parts.register(write(tmp_path / "low.wav", voice(0, 1.0, shift=0.6))) == "low"


def test_cascade_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(JudgeError, match="the cascade is not available"):
        baselines.Cascade()
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(JudgeError, match="pip install pocketsphinx"):
        baselines.Cascade()
