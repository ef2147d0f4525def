"""The probe finds in units what was put there, and chance where nothing was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sounds import voice

from vivavoce.core.errors import ConfigError, CorpusError

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from vivavoce.recipes.probe import ProbeConfig, run  # noqa: E402
from vivavoce.units import UnitEncoder, UnitsConfig  # noqa: E402

FRAMES, SPEAKERS, EMOTIONS = 40, 4, ("happy", "sad", "angry")
HEAD = {"format": 1, "sample_rate": 16000, "hop": 320, "codebooks": 2, "codebook_size": 16,
        "expression_levels": [5, 5], "views": 1,
        "shards": {"test": 1}}  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    """Tokens whose expression names the speaker, whose level names the emotion and whose content names the teacher's
    label, in a pack that has these labels; the codes are noise."""
    import pyarrow as pa

    rng, rows, labels = np.random.default_rng(0), [], []
    for i in range(SPEAKERS * 12):
        speaker, emotion = i % SPEAKERS, (i // SPEAKERS) % 3
        content = rng.integers(0, 20, FRAMES)
        labels.append(content % 4)
        prosody = np.stack((np.full(FRAMES, 700), np.full(FRAMES, 12), -40 - 8 * emotion * (np.arange(FRAMES) % 2)), 1)
        rows.append({
            "id": str(i), "speaker": f"s{speaker}", "emotion": EMOTIONS[emotion], "vocalisation": "none", "source": "x",
            "offset": FRAMES * i, "frames": FRAMES, "content": content, "content_1": content,
            "expression": np.repeat([[speaker, 2]], FRAMES, 0).reshape(-1), "expression_1": np.zeros(2 * FRAMES, int),
            "prosody": prosody.reshape(-1), "codes": rng.integers(0, 16, 2 * FRAMES),
        })  # fmt: skip
    tokens, pack = tmp_path / "tokens", tmp_path / "pack"
    (tokens / "test").mkdir(parents=True)
    pack.mkdir()
    types = {"content": pa.uint16(), "content_1": pa.uint16(), "expression": pa.uint8(), "expression_1": pa.uint8(),
             "prosody": pa.int16(), "codes": pa.uint16()}  # fmt: skip
    columns = {k: pa.array([r[k] for r in rows], pa.list_(types[k])) if k in types else pa.array([r[k] for r in rows])
               for k in rows[0]}  # fmt: skip
    pq.write_table(pa.table(columns), tokens / "test" / "00000.parquet")
    (tokens / "tokens.json").write_text(json.dumps(HEAD))
    n = len(rows) * FRAMES
    np.concatenate(labels).astype(np.uint16).tofile(pack / "teacher.u16")
    np.zeros((n, 2), np.float32).tofile(pack / "pitch.f32")
    np.concatenate([voice(int(r["speaker"][1:]), FRAMES * 0.02) * 32767 for r in rows]).astype(np.int16).tofile(
        pack / "audio.i16")  # fmt: skip
    lines = [json.dumps({k: r[k] for k in ("id", "speaker", "offset", "frames")}) for r in rows]
    (pack / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    (pack / "pack.json").write_text(json.dumps({"format": 1, "sample_rate": 16000, "hop": 320}))
    return tmp_path


def test_the_probe_reads_what_each_stream_tells(corpus):
    torch.manual_seed(0)
    UnitEncoder(UnitsConfig(n_mels=20, dim=16, depth=1, content_units=50, pitch_dim=16, pitch_depth=1)).save_pretrained(
        corpus / "units")  # fmt: skip
    run(ProbeConfig(tokens=[str(corpus / "tokens")], out=str(corpus / "out"), pack=str(corpus / "pack"),
                    units=str(corpus / "units"), splits=["test"], folds=3, teacher_steps=60))  # fmt: skip
    data = json.loads((corpus / "out" / "probe.json").read_text())
    found = data["results"]["tokens"]
    score = {(s, t): v["mean"] for s, d in found.items() for t, v in d.items()}
    assert score["expression", "speaker"] == 1.0 == score["content + expression", "speaker"]
    assert score["prosody", "emotion"] == 1.0 == score["prosody, register removed", "emotion"]
    assert score["content", "teacher"] > 0.95
    for chance in (("codes", "speaker"), ("content", "speaker"), ("expression", "emotion"), ("codes", "teacher")):
        v = found[chance[0]][chance[1]]
        assert abs(v["mean"] - v["chance"]) < 0.2, chance
    assert found["content"]["speaker"]["chance"] == 1 / SPEAKERS and found["content"]["speaker"]["n"] == 48
    assert all(v["low"] <= v["mean"] <= v["high"] for d in found.values() for v in d.values())
    layers = data["results"]["encoder"]
    assert list(layers) == ["log-mel", "trunk 1", "trunk, out"] and layers["log-mel"]["speaker"]["mean"] == 1.0
    png = (corpus / "out" / "probe.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 10_000


def test_what_the_probe_lacks_is_named(corpus):
    with pytest.raises(ConfigError, match="one folder of tokens"):
        run(ProbeConfig(tokens=[], out=str(corpus / "o")))
    with pytest.raises(ConfigError, match="name the pack too"):
        run(ProbeConfig(tokens=[str(corpus / "tokens")], out=str(corpus / "o"), units=str(corpus)))
    np.full(SPEAKERS * 12 * FRAMES, 65535, np.uint16).tofile(corpus / "pack" / "teacher.u16")
    with pytest.raises(CorpusError, match="no teacher labels"):
        run(ProbeConfig(tokens=[str(corpus / "tokens")], out=str(corpus / "o"), pack=str(corpus / "pack"),
                        splits=["test"], tasks=["teacher"]))  # fmt: skip
