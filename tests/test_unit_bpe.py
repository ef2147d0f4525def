"""Unit BPE, and the classes of a product code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel import babble

from vivavoce.core import radix
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.recipes import label, unit_bpe
from vivavoce.units.bpe import UnitBPE, deduplicate
from vivavoce.units.coarse import Coarse

for package in ("accelerate", "pyarrow", "sentencepiece", "sklearn", "tensorboard"):  # of the extra `train`
    pytest.importorskip(package)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def bpe(request: pytest.FixtureRequest) -> UnitBPE:
    return UnitBPE.train(babble(50), 50, 70, request.param)


@given(st.lists(st.integers(0, 49), max_size=80))
def test_round_trip_is_exact(bpe: UnitBPE, frames: list[int]) -> None:
    """Also of units that training never saw, and of nothing at all."""
    pieces, durations = bpe.encode(np.array(frames, np.int64))
    assert bpe.decode(pieces, durations).tolist() == frames
    values, own = deduplicate(np.array(frames, np.int64))
    assert np.array_equal(durations, own) and (np.diff(values) != 0).all()
    totals = bpe.totals(pieces, durations)
    assert len(totals) == len(pieces) and totals.sum() == len(frames) and 0 not in pieces
    shared = bpe.share(pieces, totals)
    assert len(shared) == len(durations) and shared.sum() == len(frames) and (shared >= 1).all()
    assert np.array_equal(bpe.totals(pieces, shared), totals)


def test_motifs_become_pieces(bpe: UnitBPE) -> None:
    clips = babble(50, seed=0)
    encoded = [bpe.encode(c) for c in clips]
    assert sum(len(p) for p, _ in encoded) < 0.6 * sum(len(d) for _, d in encoded)


def test_shares_follow_the_usual_durations() -> None:
    clips = [np.repeat([0, 1, 2, 0, 1, 2, 3], [2, 8, 2, 2, 8, 2, 1])] * 20
    bpe = UnitBPE.train(clips, 4, 12, "bpe")
    assert bpe.usual.tolist() == [2, 8, 2, 1]
    piece = next(i for i, s in enumerate(bpe.spelled) if s == (0, 1, 2))
    assert bpe.share([piece], [27]).tolist() == [5, 17, 5] and bpe.share([piece], [1]).tolist() == [1, 1, 1]


def test_thousands_of_units() -> None:
    """An FSQ code packed in one integer is an alphabet like any other."""
    bpe = UnitBPE.train(babble(4096), 4096, 4200, "bpe")
    assert bpe.pieces <= 4200 and bpe.units == 4096
    frames = np.random.default_rng(1).integers(0, 4096, 500)
    assert np.array_equal(bpe.decode(*bpe.encode(frames)), frames)


def product_code(seed: int = 0, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Units of five levels of 5, and the hidden class (of 6) that each was drawn around."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).integers(0, 5, (6, 5))
    hidden = rng.integers(0, 6, n)
    digits_ = np.where(rng.random((n, 5)) < 0.15, rng.integers(0, 5, (n, 5)), centres[hidden])
    return radix.pack(torch.from_numpy(digits_), [5] * 5).numpy(), hidden


def fitted(teacher: bool, classes: int = 12) -> Coarse:
    units, hidden = product_code()
    split = SimpleNamespace(content=units, offsets=np.array([0, len(units)]), clips=[{"frames": len(units)}])
    recipe = unit_bpe.UnitBPERecipe("tokens", "out", coarse=classes)
    return unit_bpe.fit_coarse(recipe, [5] * 5, split, [0], (lambda *_: hidden) if teacher else None)  # type: ignore[arg-type]


def test_classes_of_a_product_code(tmp_path: Path) -> None:
    """They name what the units were drawn around, better with labels; and they read like any alphabet."""
    units, hidden = product_code(7)
    information = {}
    for teacher in (False, True):
        coarse = fitted(teacher)
        found = coarse.classes(units)
        assert 6 <= len(coarse) <= 12 and found.max() < len(coarse)
        assert np.array_equal(coarse.classes(coarse.typical), np.arange(len(coarse)))
        information[teacher] = label.phone_information(found, hidden)
    assert information[True] > 0.6 and information[True] > information[False] - 0.02
    coarse.save(tmp_path / "coarse.safetensors")
    assert np.array_equal(Coarse.load(tmp_path / "coarse.safetensors").classes(units), found)
    bpe = UnitBPE.train(np.split(units, 40), 5**5, 40, "bpe", coarse=coarse)
    bpe.save(tmp_path)
    bpe = UnitBPE.load(tmp_path)
    back = bpe.decode(*bpe.encode(units[:300]))
    assert bpe.units == 5**5 and bpe.values == len(coarse) and np.array_equal(back, coarse.typical[found[:300]])
    assert np.array_equal(bpe.decode(*bpe.encode(back)), back)
    (tmp_path / "coarse.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"coarse.safetensors: not a safetensors file"):
        UnitBPE.load(tmp_path)


def test_saved_and_read(bpe: UnitBPE, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    again, frames = UnitBPE.load(tmp_path), babble(50, 1)[0]
    assert np.array_equal(again.encode(frames)[0], bpe.encode(frames)[0]) and again.pieces == bpe.pieces
    head = json.loads((tmp_path / "config.json").read_text())
    for change, words in (({"model_type": "other"}, "no unit BPE"), ({"format_version": 9}, "another format"),
                          ({"usual": [1.0] * 60, "units": 60}, "not one of 60 units"), ({"usual": "x"}, "incomplete"),
                          ({"units": 60}, "an alphabet of 50")):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(head | change))
        with pytest.raises(CheckpointError, match=words):
            UnitBPE.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(head))
    (tmp_path / "units.model").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        UnitBPE.load(tmp_path)
    with pytest.raises(CheckpointError, match="missing"):
        UnitBPE.load(tmp_path / "nowhere")


def test_impossible_unit_bpe(bpe: UnitBPE) -> None:
    for units, pieces, words in ((50, 50, "give 51 or more"), (70000, 80000, "coarse"), (0, 10, "1 to 65534")):
        with pytest.raises(ConfigError, match=words):
            UnitBPE.train(babble(40), units, pieces)
    with pytest.raises(ConfigError, match="unigram or bpe"):
        UnitBPE.train(babble(40), 50, 60, "word")
    with pytest.raises(ConfigError, match="no clip"):
        UnitBPE.train([np.zeros(0, np.int64)], 50, 60)
    with pytest.raises(ConfigError, match="knows 0 to 49"):
        bpe.encode(np.array([3, 50]))
