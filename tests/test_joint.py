"""Encoder and language model trained together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from vivavoce.codec import Codec
from vivavoce.core import radix
from vivavoce.core.errors import ConfigError
from vivavoce.lm import LMConfig, VoiceLM
from vivavoce.lm.model import UnitEmbedding
from vivavoce.recipes import corpus, tokenise, train_joint
from vivavoce.recipes.corpus import HOP, RATE, PrepareConfig
from vivavoce.recipes.tokenise import TokeniseConfig
from vivavoce.recipes.train_joint import JointRecipe, JointTask
from vivavoce.recipes.train_lm import LMTask
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.units import UnitEncoder, UnitsConfig

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
    UnitEncoder(UNITS).save_pretrained(root / "units")
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
