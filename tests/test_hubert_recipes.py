"""HuBERT units from a corpus to a model that converts: k-means, tokens, language model; and a distilled student."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from tiny import CODEC, voiced

from vivavoce import cli
from vivavoce.changer import load
from vivavoce.codec import Codec
from vivavoce.core.checkpoint import load_tensors, read_json
from vivavoce.core.config import load_config
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.recipes import corpus, default, distil, kmeans, label, tokenise, train_lm, train_units
from vivavoce.recipes.corpus import HOP, RATE, Pack, PrepareConfig
from vivavoce.recipes.distil import DistilConfig
from vivavoce.recipes.kmeans import KmeansConfig, Reservoir
from vivavoce.recipes.tokenise import TokeniseConfig, Tokens
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.units import HubertUnits, UnitEncoder, UnitsConfig

for package in ("transformers", "sklearn", "accelerate", "datasets", "tensorboard", "pyarrow"):
    pytest.importorskip(package)
import tiny_speech  # noqa: E402

NATIVE = UnitsConfig(n_mels=20, dim=16, depth=1, content_units=50, expression_levels=[5, 5], pitch_dim=16,
                     pitch_depth=1)  # fmt: skip
SPEAKERS = {"ann": 210.0, "bob": 110.0}  # F0 in Hz


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> SimpleNamespace:
    """A corpus of 8 clips with spans, its pack, a checkpoint, a codec and a native encoder."""
    root = tmp_path_factory.mktemp("house")
    rng = np.random.default_rng(0)
    (root / "corpus").mkdir()
    lines, spans = [], []
    for i in range(8):
        speaker = list(SPEAKERS)[i % 2]
        x = voiced(1.3 + 0.1 * i, f0=SPEAKERS[speaker], seed=i).numpy()
        hiss = np.arange(len(x)) // (8 * HOP) % 2 == 1  # two "phonemes", 160 ms each
        x[hiss] = rng.normal(0, 0.05, int(hiss.sum()))
        soundfile.write(root / "corpus" / f"{i}.wav", x, RATE)
        lines.append({"id": f"{speaker}-{i}", "path": f"{i}.wav", "speaker": speaker, "licence": "CC0-1.0",
                      "split": "valid" if i >= 5 else "train", "vocalisation": ["none", "laugh"][i == 0]})  # fmt: skip
        edges = [*np.arange(0, len(x), 8 * HOP) / RATE, len(x) / RATE]
        spans.append({"id": lines[-1]["id"], "phonemes": ["as"[k % 2] for k in range(len(edges) - 1)],
                      "spans": list(pairwise(edges))})  # fmt: skip
    lines[1]["licence"] = "CC-BY-NC-4.0"
    (root / "corpus" / "broken.wav").write_text("no sound")
    lines.append({"id": "broken", "path": "broken.wav", "speaker": "bob", "licence": "CC0-1.0"})
    (root / "corpus" / "manifest.jsonl").write_text("".join(json.dumps(c) + "\n" for c in lines))
    (root / "spans.jsonl").write_text("".join(json.dumps(s) + "\n" for s in spans))
    corpus.prepare(PrepareConfig(str(root / "corpus"), str(root / "pack"), pitch=False, workers=1))
    torch.manual_seed(3)
    Codec(CODEC).save_pretrained(root / "codec")
    UnitEncoder(NATIVE).save_pretrained(root / "native")
    tiny_speech.build(root / "checkpoint", "hubert")
    return SimpleNamespace(root=root, corpus=str(root / "corpus"), pack=str(root / "pack"), codec=str(root / "codec"),
                           native=str(root / "native"), checkpoint=str(root / "checkpoint"),
                           spans=str(root / "spans.jsonl"))  # fmt: skip


def kmeans_config(house: SimpleNamespace, out: Path, **more) -> KmeansConfig:
    given = {"units": 10, "frames": 300, "native": house.native, **more}
    return KmeansConfig(house.corpus, str(out), house.checkpoint, 2, **given)


@pytest.fixture(scope="module")
def units(house, tmp_path_factory) -> Path:
    """Units that stream: windows of 0.4 s, every 100 ms, with 20 ms of look-ahead beyond those."""
    out = tmp_path_factory.mktemp("units")
    kmeans.run(kmeans_config(house, out, phonemes=house.spans, window=20, stride=5, lookahead=5))
    return out


# ---------------------------------------------------------------- k-means


def test_reservoir_is_a_weighted_sample_in_any_order():
    rng = np.random.default_rng(0)
    x, name = torch.randn(4000, 2), np.arange(4000)
    weight = np.where(np.arange(4000) < 2000, 3.0, 1.0)
    keys = np.log(rng.random(4000)) / weight
    samples = []
    for order in (range(40), reversed(range(40))):
        reservoir = Reservoir(400)
        for i in order:
            part = slice(100 * i, 100 * i + 100)
            reservoir.add(x[part], name[part], keys[part])
        samples.append(set(reservoir.pruned()["phones"].tolist()))
    assert samples[0] == samples[1] and len(samples[0]) == 400
    assert 0.68 < np.mean([n < 2000 for n in samples[0]]) < 0.82  # three to one, 4 standard deviations


def test_folder_says_what_it_was_fitted_on_and_publishes_the_projection_s_worth(house, units):
    head = read_json(units / "config.json")
    c = head["config"]
    assert head["model_type"] == "vivavoce-hubert-units"
    assert (c["checkpoint"], c["layer"], c["content_units"]) == (house.checkpoint, 2, 10)
    assert (c["sample_rate"], c["hop"], c["dim"], c["dims"]) == (16000, 320, 24, 1)  # two phonemes: one dimension
    fit = read_json(units / "fit.json")
    assert fit["judged_clips"] == 3 and 1 <= fit["perplexity"] <= 10 and fit["frames_a_run"] >= 1
    assert 0.05 < fit["phone_nmi"] < 1 and 0 <= fit["phone_nmi_unprojected"] < 1
    encoder, spans = HubertUnits.from_pretrained(units), label.read_phonemes(house.spans)
    heard = [(encoder.content(kmeans.wave_of(house.corpus, None, clip))[0].numpy(), spans[clip["id"]])
             for clip in corpus.scan(house.corpus) if clip.get("split") == "valid"]  # fmt: skip
    phones = np.concatenate([label.phones_of(s, len(u)) for u, s in heard])
    nmi = label.phone_information(np.concatenate([u for u, _ in heard]), phones)
    assert fit["phone_nmi"] == pytest.approx(nmi)  # of the folder's own units
    tensors, _ = load_tensors(units / "model.safetensors")
    assert tensors["centroids.vectors"].shape == (10, 1)
    native, _ = load_tensors(Path(house.native) / "model.safetensors")
    assert all(torch.equal(tensors[f"native.{k}"], v) for k, v in native.items())
    assert not (units / "reservoir.safetensors").exists()


def test_a_stopped_fit_goes_on_and_gives_the_same(house, tmp_path, monkeypatch):
    kmeans.run(kmeans_config(house, tmp_path / "whole", frames=150))
    monkeypatch.setattr(kmeans, "SAVE_SECONDS", -1.0)  # save after every clip
    wave_of, heard = kmeans.wave_of, []

    def failing(name: str, pack: Pack | None, clip: dict) -> torch.Tensor:
        if len(heard) == 3:
            raise KeyboardInterrupt
        heard.append(clip["id"])
        return wave_of(name, pack, clip)

    monkeypatch.setattr(kmeans, "wave_of", failing)
    with pytest.raises(KeyboardInterrupt):
        kmeans.run(kmeans_config(house, tmp_path / "halves", frames=150))
    with pytest.raises(ConfigError, match=r"other settings \(units\)"):
        kmeans.run(kmeans_config(house, tmp_path / "halves", frames=150, units=5))
    again = [c["id"] for c in kmeans.clips_of(house.corpus)[0]]
    monkeypatch.setattr(kmeans, "wave_of", lambda *a: again.remove(a[2]["id"]) or wave_of(*a))  # type: ignore[func-returns-value]
    kmeans.run(kmeans_config(house, tmp_path / "halves", frames=150))
    assert set(heard) <= set(again)  # what was sampled is not heard again
    a, b = (load_tensors(tmp_path / n / "model.safetensors")[0] for n in ("whole", "halves"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert kmeans.run(kmeans_config(house, tmp_path / "halves", frames=150)) == read_json(tmp_path / "halves/fit.json")


def test_projections_and_refusals(house, tmp_path):
    kmeans.run(kmeans_config(house, tmp_path / "pca", projection="pca", dims=5))
    centroids = HubertUnits.from_pretrained(tmp_path / "pca").centroids
    assert centroids.projection.shape == (24, 5)
    for more, error, message in (
        ({"projection": "lda"}, ConfigError, "needs phonemes="),
        ({"projection": "umap"}, ConfigError, "use auto, lda, pca or none"),
        ({"units": 1}, ConfigError, "give 2 to 65535"),
        ({"units": 600}, CorpusError, "300 frames to fit 600 units"),
        ({"exclude_licences": ["CC0", "CC"]}, CorpusError, "no clip to fit on"),
        ({"layer": 9}, ConfigError, "layers 0 to 3"),
    ):
        with pytest.raises(error, match=message):
            config = {"layer": 2, **more}
            layer = config.pop("layer")
            c = kmeans_config(house, tmp_path / "bad", **config)
            c.layer = layer
            try:
                kmeans.run(c)
            finally:
                (tmp_path / "bad" / "kmeans.json").unlink(missing_ok=True)
                (tmp_path / "bad" / "reservoir.safetensors").unlink(missing_ok=True)


# ---------------------------------------------------------------- tokens, language model, conversion


def test_tokens_language_model_and_conversion(house, units, tmp_path, monkeypatch, capsys):
    """`tokenize units=FOLDER`, `train lm`, a model folder, a voice, a stream in two chunkings."""
    command = ["tokenize", house.pack, "-o", str(tmp_path / "tokens"), f"codec={house.codec}", f"units={units}",
               "views=1", "shard_clips=3"]  # fmt: skip
    assert cli.main(command) == 0, capsys.readouterr().err
    tokens = Tokens(tmp_path / "tokens")
    assert (tokens.head["content_units"], tokens.head["expression_levels"]) == (10, [])
    split, pack = tokens.split("train"), Pack(house.pack)
    n = int(split.offsets[-1])
    assert split.content.shape == (n,) and split.expression.shape == (n, 0) and split.views[0][1].shape == (n, 0)
    assert split.content[:].max() < 10 and np.mean(split.views[0][0][:] != split.content[:]) > 0.02
    by_id = {c["id"]: c for c in pack.clips}
    clip = by_id[split.clips[0]["id"]]
    x = torch.from_numpy(pack.waveform(clip["offset"], clip["frames"]))
    encoder = HubertUnits.from_pretrained(units)
    heard, _ = encoder(torch.nn.functional.pad(x, (0, 5 * HOP))[None])
    assert np.array_equal(heard.content[0, 5:].numpy(), split.content[: clip["frames"]])  # as they are met live

    text = (units / "config.json").read_text()
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "model.safetensors").write_bytes((units / "model.safetensors").read_bytes())
    (changed / "config.json").write_text(text.replace('"window": 20', '"window": 30'))
    with pytest.raises(CorpusError, match=r"units_sha256"):  # other windows, other tokens
        tokenise.run(TokeniseConfig(house.pack, house.codec, str(changed), str(tmp_path / "tokens"), views=1,
                                    shard_clips=3))  # fmt: skip

    toy = load_config(default.DefaultRecipe, Path(default.__file__).with_name("toy.yaml")).lm
    toy["model"] |= {"content_units": 10, "expression_levels": [], "codebook_size": CODEC.codebook_size}
    config = train_lm.LMRecipe(str(tmp_path / "tokens"), TrainConfig(str(tmp_path / "lm"), steps=3, validate_every=100))
    for key in ("batch_size", "crop_frames", "prompt_frames", "valid_batches", "listen_pairs"):
        setattr(config, key, toy[key])
    config.model = train_lm.LMConfig(**toy["model"])
    assert np.isfinite(train_lm.run(config)["nll_0"])

    model = tmp_path / "model"
    for part, source in (("codec", Path(house.codec)), ("units", units), ("lm", tmp_path / "lm" / "export")):
        (model / part).mkdir(parents=True)
        for path in source.glob("*.*"):
            (model / part / path.name).write_bytes(path.read_bytes())
    default.assemble(model)
    changer = load(model)
    voice = changer.enroll(voiced(1.5, f0=180.0), RATE, "ada")
    voice.save(tmp_path / "ada.voice")
    y, rate = changer.convert(x, str(tmp_path / "ada.voice"), RATE)
    stream = changer.stream(voice, RATE)
    assert stream.latency.look_ahead == 100  # ms
    pieces = [stream.push(part) for part in x.split(700)]
    whole = changer.stream(voice, RATE)
    assert torch.equal(torch.cat((*pieces, stream.flush())), torch.cat((whole.push(x), whole.flush())))
    assert rate == RATE and y.shape == x.shape and float(y.abs().max()) > 1e-4


# ---------------------------------------------------------------- distillation


def test_a_student_is_distilled(house, units, tmp_path, monkeypatch):
    config = DistilConfig(house.corpus, str(units), str(tmp_path / "labels.npz"), house.spans)
    wave_of, calls = distil.wave_of, []

    def failing(*a) -> torch.Tensor:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(a[2]["id"])
        return wave_of(*a)

    monkeypatch.setattr(distil, "wave_of", failing)
    with pytest.raises(KeyboardInterrupt):
        distil.run(config)
    with open(tmp_path / "labels.npz.parts" / "labels.u16", "ab") as f:
        f.write(b"half a clip")
    monkeypatch.setattr(distil, "wave_of", lambda *a: calls.append(a[2]["id"]) or wave_of(*a))
    result = distil.run(config)
    assert result["clips"] == 8 and result["phone_nmi"] == pytest.approx(read_json(units / "fit.json")["phone_nmi"])
    assert sorted(calls) == sorted({*calls}) and not (tmp_path / "labels.npz.parts").exists()

    data = np.load(tmp_path / "labels.npz", allow_pickle=False)
    spans = label.read_phonemes(house.spans)
    rows = {i: data["units_10"][o : o + n] for i, o, n in zip(data["clip_ids"], data["offsets"], data["lengths"])}
    corpus.prepare(PrepareConfig(house.corpus, str(tmp_path / "pack"), teacher=config.out, teacher_array="units_10",
                                 pitch=False, workers=1))  # fmt: skip
    pack = Pack(tmp_path / "pack")
    encoder = HubertUnits.from_pretrained(units)
    for clip in pack.clips:
        at = slice(clip["offset"], clip["offset"] + clip["frames"])
        assert np.array_equal(pack.teacher[at], rows[clip["id"]]) and clip["id"] in spans
    clip = pack.clips[0]
    wave = torch.from_numpy(kmeans.wave_of(house.corpus, None, clip)[0].numpy())
    assert np.array_equal(encoder.content(wave[None])[0].numpy(), rows[clip["id"]])

    model = UnitsConfig(dim=16, depth=1, content_units=10, expression_levels=[5, 5], pitch_dim=16, pitch_depth=1)
    train = TrainConfig(str(tmp_path / "student"), steps=40, learning_rate=5e-3, warmup_steps=2, validate_every=1000)
    student = train_units.run(train_units.UnitsRecipe(str(pack.folder), train, model, batch_size=4, crop_frames=40,
                                                      noise_probability=0.0, warp=0.0, valid_clips=2))  # fmt: skip
    chance = max(np.bincount(np.concatenate(list(rows.values()))) / sum(map(len, rows.values())))
    assert student["speech/hit"] > 0.5 * chance  # it learns something of what the teacher says, in 40 steps
    assert UnitEncoder.from_pretrained(tmp_path / "student" / "export").config.content_units == 10


def test_yaml_and_refusals(tmp_path, house, units):
    for name, cls in (("kmeans", KmeansConfig), ("distil", DistilConfig)):
        path = Path(kmeans.__file__).with_name(f"{name}.yaml")
        load_config(cls, path)
        assert "#   vivavoce train " + name in path.read_text().split("\n\n")[0]
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        distil.run(DistilConfig(house.corpus, str(units), str(tmp_path / "labels.txt")))
    assert cli.main(["train", "kmeans", f"corpus={house.pack}", f"checkpoint={house.native}", f"out={tmp_path}/x",
                     f"native={house.native}"]) == 1  # fmt: skip
