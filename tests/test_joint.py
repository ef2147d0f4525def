"""Encoder and language model trained together, and the critics that may listen to their conversions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from vivavoce.codec import Codec
from vivavoce.core import radix
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.lm import LMConfig, Source, VoiceLM
from vivavoce.lm.model import UnitEmbedding
from vivavoce.recipes import corpus, tokenise, train_critics, train_decoder, train_joint
from vivavoce.recipes.average import average
from vivavoce.recipes.corpus import HOP, RATE, Pack, PrepareConfig
from vivavoce.recipes.critics import CriticConfig, Critics, Turns, crossed, turned
from vivavoce.recipes.tokenise import TokeniseConfig
from vivavoce.recipes.train_critics import CriticRecipe, CriticTask
from vivavoce.recipes.train_decoder import DecoderRecipe, DecoderTask
from vivavoce.recipes.train_joint import JointRecipe, JointTask
from vivavoce.recipes.train_lm import LMTask, summed
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.units import UnitEncoder, UnitsConfig, prosody

UNITS = UnitsConfig(n_mels=40, dim=16, depth=1, content_units=75, content_levels=[5, 3, 5], expression_levels=[5, 3],
                    pitch_dim=16, pitch_depth=1)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A small corpus of two speakers, its pack and tokens, and the models behind them."""
    import soundfile

    root = tmp_path_factory.mktemp("joint")
    for n in range(8):
        folder = root / "corpus" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{n}.wav", 0.3 * tiny.voiced(0.7 + 0.1 * n, RATE).numpy(), RATE)
    corpus.prepare(PrepareConfig(str(root / "corpus"), str(root / "pack"), pitch=False, workers=1))
    torch.manual_seed(2)
    Codec(tiny.CODEC).save_pretrained(root / "codec")
    encoder = UnitEncoder(UNITS)
    with torch.no_grad():
        encoder.content_head.weight.mul_(8.0)  # all levels occur
    encoder.save_pretrained(root / "units")
    shape = LMConfig(content_units=75, content_levels=[5, 3, 5], expression_levels=[5, 3], n_codebooks=2,
                     codebook_size=tiny.CODEC.codebook_size, dim=32, layers=1, heads=2, hidden=32, depth_hidden=32,
                     context=20, autoregressive=False)  # fmt: skip
    VoiceLM(shape).save_pretrained(root / "lm")
    tokenise.run(TokeniseConfig(*(str(root / n) for n in ("pack", "codec", "units", "tokens")), shard_clips=3, views=1,
                                splits=["train", "valid"], speeds=[1.25]))  # fmt: skip
    return SimpleNamespace(root=root, lm=shape)


def recipe(made: SimpleNamespace, out: Path, steps: int = 3) -> JointRecipe:
    named = {k: str(made.root / k) for k in ("pack", "codec", "units", "tokens")}
    return JointRecipe(**named, start_from=str(made.root / "lm"), model=made.lm, batch_size=3, crop_frames=30,
                       prompt_frames=[20], valid_batches=1, regression=1.0,
                       train=TrainConfig(str(out), steps=steps, warmup_steps=1, validate_every=100,
                                         learning_rate=3e-3))  # fmt: skip


def test_levels_embed_as_the_units_that_pack_them() -> None:
    table, digits = UnitEmbedding([5, 3, 5], 8), torch.tensor([[0, 2, 4], [3, 0, 1], [2, 1, 2]])
    units = radix.pack(digits, [5, 3, 5])
    levels = digits.float().requires_grad_()
    torch.testing.assert_close(table(levels), table(units))
    table(levels)[2, 0].backward()
    w = table.weight.detach()
    assert float(levels.grad[2, 0]) == pytest.approx(float(w[3, 0] - w[1, 0]) / 2, abs=1e-5)  # a middle level
    levels.grad = None
    table(levels)[0, 0].backward()
    assert float(levels.grad[0, 0]) == pytest.approx(float(w[1, 0] - w[0, 0]), abs=1e-5)  # the lowest has one neighbour


@torch.no_grad()
def test_unperturbed_it_says_what_the_language_model_says(made: SimpleNamespace, tmp_path: Path) -> None:
    """Units read anew from the audio that the task gathers are the tokens' own, so the losses are the same."""
    config = recipe(made, tmp_path)
    task, plain = JointTask(config), LMTask(config)
    for sequences in (task.train, task.valid):
        b = task._draw(sequences, np.random.default_rng(0), training=False)
        task.model.eval()
        both = [t.loss(m, b)[1] for t, m in ((task, task.model), (plain, plain.model))]
        for k in both[0]:
            assert float(both[0][k]) == pytest.approx(float(both[1][k]), rel=0.03), k
    assert b["wave"].shape == (3, (30 + UNITS.lookahead) * HOP)


def test_the_encoder_learns(made: SimpleNamespace, tmp_path: Path) -> None:
    config = recipe(made, tmp_path / "run", steps=25)
    before = JointTask(config)
    with torch.no_grad():
        first = float(np.mean([float(before.loss(before.model, before.batch(np.random.default_rng(i)))[0])
                               for i in range(4)]))  # fmt: skip
    train_joint.run(config)
    units, lm = (UnitEncoder.from_pretrained(tmp_path / "run/export/units"),
                 VoiceLM.from_pretrained(tmp_path / "run/export/lm"))  # fmt: skip
    moved = {k: not torch.equal(v, before.model.encoder.state_dict()[k]) for k, v in units.state_dict().items()}
    assert moved["content_head.weight"] and moved["expression_head.weight"]
    assert not any(v for k, v in moved.items() if k.startswith("pitch."))
    before.model.encoder.load_state_dict(units.state_dict())
    before.model.lm.load_state_dict(lm.state_dict())
    with torch.no_grad():
        last = float(np.mean([float(before.loss(before.model, before.batch(np.random.default_rng(i)))[0])
                              for i in range(4)]))  # fmt: skip
    assert last < first - 0.1


def test_it_says_what_it_needs(made: SimpleNamespace, tmp_path: Path) -> None:
    config = recipe(made, tmp_path)
    for name in ("start_from", "units", "pack"):
        with pytest.raises(ConfigError, match=f"^{name}: say which"):
            JointTask(replace(config, **{name: ""}))
    UnitEncoder(UnitsConfig(n_mels=40, dim=16, depth=1, pitch_dim=16, pitch_depth=1)).save_pretrained(tmp_path / "u")
    with pytest.raises(ConfigError, match="only product codes"):
        JointTask(replace(config, units=str(tmp_path / "u")))
    (tmp_path / "corpus").symlink_to(made.root / "corpus")
    corpus.prepare(PrepareConfig(str(tmp_path / "corpus"), str(tmp_path / "p"), pitch=False, workers=1, limit=5))
    with pytest.raises(ConfigError, match="was not made of"):
        JointTask(replace(config, pack=str(tmp_path / "p")))


def test_tokens_of_other_units_will_do(made: SimpleNamespace, tmp_path: Path) -> None:
    """Units are read anew from the waveforms, so only codes have to be those that the model writes."""
    torch.manual_seed(3)
    UnitEncoder(replace(UNITS, expression_levels=[3])).save_pretrained(tmp_path / "units")
    shape = replace(made.lm, expression_levels=[3])
    VoiceLM(shape).save_pretrained(tmp_path / "lm")
    named = {"units": str(tmp_path / "units"), "start_from": str(tmp_path / "lm"), "model": shape}
    task = JointTask(replace(recipe(made, tmp_path / "run"), **named))
    assert torch.isfinite(task.loss(task.model, task.batch(np.random.default_rng(0)))[0])
    with pytest.raises(ConfigError, match=r"expression_levels is \[3\]"):
        LMTask(replace(recipe(made, tmp_path / "run"), model=shape))


@pytest.fixture(scope="module")
def critics(made: SimpleNamespace) -> SimpleNamespace:
    """Critics of the small corpus, trained until they know its two speakers, and two more at another speed."""
    torch.manual_seed(0)
    config = CriticRecipe(*(str(made.root / n) for n in ("tokens", "codec")),
                          model=CriticConfig(dim=16, layers=2, dropout=0.0), batch_size=8, crop_frames=30, noise=0.0,
                          train=TrainConfig(str(made.root / "critics"), steps=60, warmup_steps=1, learning_rate=1e-2,
                                            validate_every=100))  # fmt: skip
    before = CriticTask(config).validate()
    return SimpleNamespace(folder=str(made.root / "critics" / "export"), before=before, after=train_critics.run(config))


def test_critics_learn_who_speaks_and_what(critics: SimpleNamespace) -> None:
    shape = Critics.from_pretrained(critics.folder).config
    assert (shape.speakers, shape.content_levels, shape.code_dim) == (4, [5, 3, 5], tiny.CODEC.code_dim)
    assert critics.after["who_hit"] > max(0.5, critics.before["who_hit"] + 0.2)  # four speakers
    assert critics.after["words"] < critics.before["words"] - 0.1


def asked(made: SimpleNamespace, out: Path, critics: SimpleNamespace, **more: float) -> JointRecipe:
    return replace(recipe(made, out), batch_size=6, critics=critics.folder, **more)


def test_conversions_cross_speakers_in_the_register_of_the_prompt(
    made: SimpleNamespace, critics: SimpleNamespace, tmp_path: Path
) -> None:
    task = JointTask(asked(made, tmp_path, critics))
    b = task.batch(np.random.default_rng(1))
    turns, who = crossed(b), b["who"]
    n = len(who)
    assert torch.equal(turns.source[:n], turns.prompt[:n]) and len(turns.source) > n
    assert (who[turns.source[n:]] != who[turns.prompt[n:]]).all()
    silent = {**b, "speech": torch.zeros_like(b["speech"])}
    assert len(crossed(silent).source) == n  # nobody speaks: no conversions
    f0 = torch.tensor([[100.0, 100.0], [220.0, 200.0]])
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    source = Source(zeros, zeros[..., None], f0, torch.ones(2, 2), torch.zeros(2, 2))
    _, moved = turned(source, source, type(turns)(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])))
    torch.testing.assert_close(moved.f0[:2], f0)
    assert float(moved.f0[2].log2().mean().exp2()) == pytest.approx(100.0, rel=1e-4)
    assert float(moved.f0[2, 0] / moved.f0[2, 1]) == pytest.approx(1.1, rel=1e-4)


def followed(task: JointTask, steps: int, *names: str) -> np.ndarray:
    """These numbers, [steps, names], while their sum alone is followed; the last step's gradients stay."""
    optimiser = torch.optim.Adam([p for p in task.model.parameters() if p.requires_grad], lr=3e-3)
    seen = []
    for step in range(steps):
        torch.manual_seed(step)
        _, numbers = task.loss(task.model, task.batch(np.random.default_rng(step % 3)))
        optimiser.zero_grad()
        torch.stack([numbers[n] for n in names]).sum().backward()
        optimiser.step()
        seen.append([float(numbers[n].detach()) for n in names])
    return np.array(seen)


def test_the_critics_are_heard_and_stay_as_they_are(
    made: SimpleNamespace, critics: SimpleNamespace, tmp_path: Path
) -> None:
    """Without any other loss, conversions come to be more like their prompts' speakers and clearer; and the gradient
    of likeness reaches the encoder."""
    task = JointTask(asked(made, tmp_path, critics, likeness=1.0, words=1.0))
    assert not any(n.startswith("critics") for n, _ in task.model.named_parameters())
    weights = {k: v.clone() for k, v in task.critics.state_dict().items()}
    heard = followed(task, 30, "who", "words")
    assert (heard[-6:].mean(0) < heard[:6].mean(0)).all()
    assert float(task.model.encoder.content_head.weight.grad.abs().sum()) > 0
    assert all(torch.equal(v, weights[k]) for k, v in task.critics.state_dict().items())
    task.model.eval()
    with torch.no_grad():
        assert set(task.loss(task.model, task._draw(task.valid, np.random.default_rng(0), training=False))[1]) == {
            "error", "nll_0", "nll_1"}  # fmt: skip


def test_what_is_said_is_read_again_once_it_is_sound(
    made: SimpleNamespace, critics: SimpleNamespace, tmp_path: Path
) -> None:
    """The recording itself is read as the tokens say, but for their rounding; another is not, nor a frame too late; and
    the gradient alone makes conversions clearer."""
    task = JointTask(asked(made, tmp_path, critics, reader=str(made.root / "units")))
    b = next(b for i in range(99) if not int((b := task.batch(np.random.default_rng(i)))["delay"]))
    said, own = torch.zeros(*b["mask"].shape, tiny.CODEC.code_dim), torch.arange(len(b["mask"]))

    def error(wave: torch.Tensor, late: int = 1) -> float:
        sound = torch.nn.functional.pad(wave, (late * HOP, 0))[:, : b["mask"].shape[1] * HOP]
        task.codec.decode = lambda *_: (sound[-3:], None)  # half of the batch
        found = float(task._reread(said, b, Turns(own, own))["reread"])
        del task.codec.decode
        return found

    assert error(b["wave"]) < 0.5 * min(error(b["wave"], late=2), error(b["wave"].roll(1, 0)))
    total, numbers = task.loss(task.model, task.batch(np.random.default_rng(0)))
    assert float(total.detach()) > 2.0 * float(numbers["reread"].detach()) > 0
    read = followed(task, 24, "reread")
    assert read[-6:].mean() < read[:6].mean()
    assert all(p.grad is None for p in (*task.reader.parameters(), *task.codec.parameters()))
    with pytest.raises(ConfigError, match="reader: needs critics="):
        JointTask(replace(recipe(made, tmp_path), reader=str(made.root / "units")))
    UnitEncoder(replace(UNITS, content_levels=[5, 5, 3])).save_pretrained(tmp_path / "units")
    with pytest.raises(ConfigError, match=r"content_levels \[5, 5, 3\]"):
        JointTask(asked(made, tmp_path, critics, reader=str(tmp_path / "units")))


@pytest.fixture(scope="module")
def whisper(made: SimpleNamespace) -> SimpleNamespace:
    """A small Whisper, and the pack with labels by which it learns what to heed."""
    pytest.importorskip("transformers")
    tiny.whisper().save_pretrained(made.root / "whisper")
    pack = made.root / "labelled"
    shutil.copytree(made.root / "pack", pack)
    levels = np.abs(Pack(pack).audio.astype(np.float32)).mean(1)
    np.digitize(levels, np.quantile(levels, [0.2, 0.4, 0.6, 0.8])).astype(np.uint16).tofile(pack / "teacher.u16")
    return SimpleNamespace(folder=str(made.root / "whisper"), pack=str(pack))


def test_a_whisper_reads_along_what_tells_labels_apart(
    made: SimpleNamespace, critics: SimpleNamespace, whisper: SimpleNamespace, tmp_path: Path
) -> None:
    """Nothing is missed of the recording itself, less of it with some noise than of another, at any delay; gradients
    reach what was said, and the Whisper stays as it is."""
    config = replace(asked(made, tmp_path / "run", critics, reader=whisper.folder), pack=whisper.pack)
    with pytest.raises(ConfigError, match="no teacher's labels"):
        JointTask(replace(config, pack=str(made.root / "pack")))
    task = JointTask(config)
    b = task.batch(np.random.default_rng(1))
    known = b["mask"] > 0
    sound = b["recording"][:, : known.shape[1] * HOP]

    def missed(x: torch.Tensor) -> float:
        return float(task.reader(x, sound, b["said"], known))

    noisy = sound + 3e-4 * torch.randn(sound.shape)
    assert missed(sound) == 0.0 < missed(noisy) < 0.5 * missed(sound.roll(1, 0))
    ahead = int(b["delay"]) * HOP
    torch.testing.assert_close(sound[0, ahead : 9 * HOP], b["wave"][0, : 9 * HOP - ahead])
    task.loss(task.model, b)[1]["reread"].backward()
    assert task.model.encoder.content_head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in (*task.reader.parameters(), *task.codec.parameters()))


def decoder_recipe(made: SimpleNamespace, whisper: SimpleNamespace, out: Path, steps: int = 12) -> DecoderRecipe:
    named = {k: str(made.root / k) for k in ("codec", "units", "tokens", "lm")}
    train = TrainConfig(str(out), steps=steps, warmup_steps=1, validate_every=100, learning_rate=3e-3)
    return DecoderRecipe(**named, pack=whisper.pack, reader=whisper.folder, train=train, batch_size=5, crop_frames=30,
                         prompt_frames=[20], valid_batches=2)  # fmt: skip


@torch.no_grad()
def test_a_decoder_hears_what_is_said_codes_and_conversions(
    made: SimpleNamespace, whisper: SimpleNamespace, tmp_path: Path
) -> None:
    task = DecoderTask(decoder_recipe(made, whisper, tmp_path))
    b = task.batch(np.random.default_rng(1))
    z, (f0, periodicity, level), which = task.rows(b)
    turns = crossed(b)
    across = min(3, len(turns.source) - 5)
    assert which.tolist() == [0, 1, 2, 3, 4, *turns.source[5 : 5 + across].tolist()] and across
    assert z.shape == (5 + across, 30, tiny.CODEC.code_dim) and f0.shape == periodicity.shape == level.shape
    sums = [summed(task.speaker.books[:k], b["fine"][3:, :, :k]) for k in (2, len(task.speaker.books))]
    assert any(torch.equal(z[3:5], s) for s in sums)  # the language model's codebooks, or all
    own, _, loud = prosody.dequantise(b["melody"])
    torch.testing.assert_close(f0[:5], own)
    torch.testing.assert_close(level, loud[which])
    task.config.lead = 0.0
    torch.manual_seed(0)
    plain = task.rows(b)[0]
    torch.testing.assert_close(plain[:3], z[:3])
    apart = (z - plain)[5:]  # one way of each conversion, the same in all its frames
    torch.testing.assert_close(apart, apart[:, :1].expand_as(apart))
    assert apart[:, 0].norm(dim=-1).min() > 0.0
    _, numbers = task.loss(task.model, {**b, "speech": torch.zeros_like(b["speech"])})  # nobody speaks
    assert "words_codes" in numbers and "words_converted" not in numbers


def test_only_the_decoder_learns(made: SimpleNamespace, whisper: SimpleNamespace, tmp_path: Path) -> None:
    """Codes stay what they were, what is made of them comes nearer to the recordings; a codec of others has no such
    decoder, and an encoder of ours hears words alone."""
    config = decoder_recipe(made, whisper, tmp_path / "run")
    first = DecoderTask(config).validate()
    last = train_decoder.run(config)
    before, after = (Codec.from_pretrained(p).state_dict() for p in (config.codec, tmp_path / "run/export"))
    moved = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == {"decoder", "head"}
    assert set(first) == set(last) and last["words_converted"] > 0
    assert all(last[k] < first[k] for k in ("spectral_said", "spectral_codes", "heard_codes"))
    with pytest.raises(ConfigError, match="not a Whisper"):
        DecoderTask(replace(config, reader=config.units))


def test_spectra_may_be_compared_in_the_place_of_vectors(made: SimpleNamespace, tmp_path: Path) -> None:
    """`spectral` is 0 of the codes themselves and falls when it alone is followed; `likelihood=0` leaves codes out."""
    task = JointTask(replace(recipe(made, tmp_path), spectral=1.0, likelihood=0.0, regression=1e-6))
    b = task.batch(np.random.default_rng(0))
    fine = torch.randn(*b["mask"].shape, tiny.CODEC.code_dim)
    assert float(task._spectral(fine, fine, b)) == 0.0 < float(task._spectral(fine + 0.1, fine, b))
    loss, numbers = task.loss(task.model, b)
    assert float(loss.detach()) == pytest.approx(float(numbers["spectral"].detach()), rel=1e-3)
    seen = followed(task, 24, "spectral")
    assert seen[-6:].mean() < seen[:6].mean()
    assert all(p.grad is None for p in task.codec.parameters())
    with pytest.raises(ConfigError, match="spectral: needs regression="):
        JointTask(replace(recipe(made, tmp_path), spectral=1.0, regression=0.0))


def test_critics_of_other_tokens_are_refused(made: SimpleNamespace, critics: SimpleNamespace, tmp_path: Path) -> None:
    config = asked(made, tmp_path, critics)
    Critics(CriticConfig(tiny.CODEC.code_dim, 9, [5, 3, 5])).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="knows 9 speakers"):
        JointTask(replace(config, critics=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="regression="):
        JointTask(replace(config, regression=0.0))


def test_ears_learn_the_source_and_conversions_learn_to_hide_it(
    made: SimpleNamespace, critics: SimpleNamespace, tmp_path: Path
) -> None:
    """The ears' own loss moves nothing but them, what they hear moves all but them, and both losses fall alone."""
    assert JointTask(replace(recipe(made, tmp_path), leak=0.2)).model.ears is None  # without critics
    task = JointTask(asked(made, tmp_path, critics, leak=0.2))
    batch, ears, rest = task.batch(np.random.default_rng(1)), task.model.ears, (task.model.lm, task.model.encoder)

    def moved(name: str) -> tuple[float, float]:
        task.model.zero_grad()
        task.loss(task.model, batch)[1][name].backward()
        total = [sum(float(p.grad.abs().sum()) for m in part for p in m.parameters() if p.grad is not None)
                 for part in ((ears,), rest)]  # fmt: skip
        return total[0], total[1]

    alone, none = moved("ears")
    assert alone > 0 and none == 0
    none, alone = moved("leak")
    assert alone > 0 and none == 0
    for name in ("ears", "leak"):
        heard = followed(task, 20, name)
        assert heard[-5:].mean() < heard[:5].mean(), name


def test_the_mean_of_models_is_their_weights_mean(made: SimpleNamespace, tmp_path: Path) -> None:
    for i in (1, 2):
        torch.manual_seed(i)
        UnitEncoder(UNITS).save_pretrained(tmp_path / f"{i}/units")
        VoiceLM(made.lm).save_pretrained(tmp_path / f"{i}/lm")
    a, b, out = (tmp_path / n for n in ("1", "2", "mean"))
    assert average([a, b], out) == ["units", "lm"]
    for part, kind in (("units", UnitEncoder), ("lm", VoiceLM)):
        x, y, mean = (kind.from_pretrained(f / part).state_dict() for f in (a, b, out))
        assert any(not torch.equal(x[k], y[k]) for k in x)
        for k, v in mean.items():
            torch.testing.assert_close(v, (x[k] + y[k]) / 2 if v.is_floating_point() else x[k])
    VoiceLM(replace(made.lm, hidden=48)).save_pretrained(tmp_path / "2/lm")
    with pytest.raises(CheckpointError, match="does not fit"):
        average([a, b], tmp_path / "other")
    for folders, says in (([a], "two folders"), ([tmp_path / "no", b], "holds none of")):
        with pytest.raises(ConfigError, match=says):
            average(folders, tmp_path / "other")
