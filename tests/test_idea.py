"""The ablation of docs/the_idea.md: contents are swapped as they say, and every variant runs to its numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import parallel
import pytest

from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.recipes import idea
from vivavoce.recipes.idea import IdeaRecipe, Swap
from vivavoce.recipes.tokenise import Tokens

for package in ("accelerate", "pyarrow", "tensorboard"):  # the extra `train`
    pytest.importorskip(package)

TINY = {"batch_size": 2, "crop_frames": 20, "prompt_frames": [20], "valid_batches": 1, "listen_pairs": 2,
        "model": {"n_codebooks": 2, "dim": 32, "layers": 1, "heads": 2, "hidden": 32, "depth_hidden": 32,
                  "stem_layers": 1, "context": 20},
        "train": {"steps": 2, "warmup_steps": 1}}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return parallel.build(tmp_path_factory.mktemp("idea"))


def recipe(corpus: SimpleNamespace, out: Path, **kw: object) -> IdeaRecipe:
    base = IdeaRecipe(str(corpus.tokens), str(corpus.pack), str(corpus.phonemes), str(corpus.model / "codec"),
                      str(out), lm=TINY, judged=2, judges=[], spans_earlier=0)  # fmt: skip
    return dataclasses.replace(base, **kw)


def swap(corpus: SimpleNamespace, **kw: object) -> Swap:
    return Swap(recipe(corpus, Path("unused"), **kw), Tokens(corpus.tokens))


def test_contents_are_what_they_say(corpus: SimpleNamespace) -> None:
    native, teacher, phonemes = (swap(corpus, content=c) for c in idea.CONTENTS)
    data = native.data["train"]
    spoken = []
    for i, clip in enumerate(data.clips):
        a, b = data.offsets[i : i + 2]
        true = corpus.labels[clip["id"]]
        mine, theirs, phones = (s("train", i) for s in (native, teacher, phonemes))
        assert mine is not None and theirs is not None and phones is not None
        assert np.array_equal(mine["content"], data.content[a:b]) and np.array_equal(theirs["content"], true)
        assert len(np.unique(mine["expression"], axis=0)) == 1 and "prosody" not in mine  # copied as it is
        if clip["vocalisation"] == "laugh":
            assert not phones["content"].any()  # text knows no laughs
        else:
            spoken.append((phones["content"], true))
    x, y = (np.concatenate(z) for z in zip(*spoken))
    names = {int(p): set(y[x == p].tolist()) for p in np.unique(x)}
    assert all(len(v) == 1 for v in names.values()) and len(names) == 5 and 0 not in names
    assert (native.symbols, teacher.symbols, phonemes.symbols) == (50, 7, 6)


def test_expression_may_be_kept(corpus: SimpleNamespace) -> None:
    kept = swap(corpus, expression=True)
    a, b = kept.data["train"].offsets[:2]
    found = kept("train", 0)
    assert found is not None and np.array_equal(found["expression"], kept.data["train"].expression[a:b])


def test_prosody_by_table(corpus: SimpleNamespace) -> None:
    """Nothing of the source's melody and loudness is left: a symbol always sounds the same in one voice."""
    table = swap(corpus, content="phonemes", prosody="table")
    seen: dict[tuple, set] = {}
    for split in ("train", "valid"):
        for i, clip in enumerate(table.data[split].clips):
            found = table(split, i)
            assert found is not None and found["prosody"].shape == (clip["frames"], 3)
            for symbol, row in zip(found["content"], found["prosody"]):
                seen.setdefault((clip["speaker"], int(symbol)), set()).add(tuple(row))
                seen.setdefault(("level", int(symbol)), set()).add(tuple(row[1:]))
    assert all(len(v) == 1 for v in seen.values())


def test_speech_without_phonemes_is_left_out_of_all(corpus: SimpleNamespace, tmp_path: Path) -> None:
    lines = corpus.phonemes.read_text().splitlines()
    (tmp_path / "some.jsonl").write_text("\n".join(x for x in lines if json.loads(x)["id"] != "ann-0-calm"))
    for content in idea.CONTENTS:
        some = swap(corpus, content=content, phonemes=str(tmp_path / "some.jsonl"))
        gone = [c["id"] for i, c in enumerate(some.data["train"].clips) if some("train", i) is None]
        assert gone == ["ann-0-calm"]


@pytest.mark.parametrize(("content", "prosody"), [("native", "source"), ("teacher", "source"), ("phonemes", "table")])
def test_variants_run_to_their_numbers(corpus: SimpleNamespace, tmp_path: Path, content: str, prosody: str) -> None:
    config = recipe(corpus, tmp_path / "out", content=content, prosody=prosody)
    result = idea.run(config)
    wanted = {"nll_0", *(f"{k}level_shift_{g}" for k in ("", "codec_") for g in ("speech", "events"))}
    assert wanted <= set(result) and all(np.isfinite(result[k]) for k in wanted)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["content"] == content
    assert len(list((tmp_path / "out" / "heard").glob("*.core.wav"))) == 4
    again = idea.run(config)  # trained already: it only judges again
    assert all(again[k] == pytest.approx(result[k]) for k in wanted)


def test_idea_refuses(corpus: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="content is one of"):
        swap(corpus, content="letters")
    with pytest.raises(CorpusError, match="not the pack behind the tokens"):
        pack = tmp_path / "pack"
        pack.mkdir()
        for path in corpus.pack.iterdir():
            (pack / path.name).write_bytes(path.read_bytes())
        lines = (pack / "manifest.jsonl").read_text().splitlines()
        (pack / "manifest.jsonl").write_text("\n".join(lines[1:]))
        swap(corpus, pack=str(pack))
