"""fairseq2's encoder with the hub's weights gives the hidden states that `transformers` gives.

Runs where fairseq2 imports: `tools/fairseq2_env.sh` makes such an environment and runs this there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# the folder above is not named `fairseq2`: an empty namespace package of that name would import everywhere
pytest.importorskip("fairseq2.models", reason="fairseq2 is not installed; see tools/fairseq2_env.sh")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny_speech
from tiny import voiced

from vivavoce.core.errors import CheckpointError
from vivavoce.units.hubert import Checkpoint, SpeechEncoder
from vivavoce.units.hubert.fairseq import convert

KINDS = ("hubert", "hubert-large", "wav2vec2", "xls-r")


def both(folder: Path, layer: int, **more) -> tuple[SpeechEncoder, SpeechEncoder]:
    checkpoint = Checkpoint.open(folder, 16000, 320)
    ours = (SpeechEncoder(checkpoint, layer, backend=b, **more) for b in ("transformers", "fairseq2"))
    return next(ours), next(ours)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_equal_at_every_layer(kind, tmp_path):
    folder = tiny_speech.build(tmp_path, kind)
    x = torch.stack((voiced(1.0), voiced(1.0, f0=230.0, seed=1)))
    before = None
    for layer in range(tiny_speech.SHAPE["num_hidden_layers"] + 1):
        theirs, ours = (e(x) for e in both(folder, layer))
        assert ours.shape == theirs.shape == (2, 50, 24)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert before is None or (ours - before).abs().max() > 0.1  # each layer does something
        before = ours


@pytest.mark.parametrize("head", ("ForCTC", "Model"))
def test_weights_below_a_head_and_contentvec_projection(head, tmp_path):
    folder = tiny_speech.build(tmp_path, "hubert", head=head, final_proj=True)
    theirs, ours = (e(voiced(0.5)[None]) for e in both(folder, 2, final_proj=True))
    assert ours.shape == (1, 25, 12)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_weight_norm_of_older_checkpoints_has_other_names():
    old = {"encoder.pos_conv_embed.conv.weight_g": torch.ones(1), "masked_spec_embed": torch.ones(1)}
    new = {"encoder.pos_conv_embed.conv.parametrizations.weight.original0": torch.ones(1)}
    for tensors in (old, new):
        assert convert(tensors, False, True).keys() == {"frontend.pos_encoder.conv.weight_g"}


@pytest.mark.parametrize(("kind", "more", "message"), [
    ("wavlm", {}, "relative positions"),
    ("hubert", {"hidden_act": "relu"}, "hidden_act is relu"),
    ("hubert", {"hidden_size": 16}, "equally wide"),
])  # fmt: skip
def test_what_fairseq2_lacks_is_named(kind, more, message, tmp_path):
    folder = tiny_speech.build(tmp_path, kind, **more)
    with pytest.raises(CheckpointError, match=message):
        both(folder, 1)
