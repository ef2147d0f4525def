"""Tiny HuBERT, wav2vec 2.0 and WavLM checkpoints with random weights, saved as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SHAPE = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "vocab_size": 8, "classifier_proj_size": 12,
    "num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("Hubert", {}),
    "hubert-large": ("Hubert", LARGE),
    "wav2vec2": ("Wav2Vec2", {}),
    "xls-r": ("Wav2Vec2", LARGE),
    "wavlm": ("WavLM", {}),
    "wavlm-large": ("WavLM", LARGE),
}


def build(folder: Path, kind: str = "hubert", seed: int = 0, head: str = "Model", **more: Any) -> Path:
    """Save a checkpoint of a `kind` above. `head="ForCTC"` puts a head on it, `final_proj=True` ContentVec's.

    `normalise=None` leaves the feature extractor's config out.
    """
    import transformers
    from safetensors.torch import load_file, save_file

    name, shape = KINDS[kind]
    normalise, final_proj = more.pop("normalise", bool(shape)), more.pop("final_proj", False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{name}Config")(**{**SHAPE, **shape, **more})
        model = getattr(transformers, f"{name}{head}")(config).eval()
        for p in model.parameters():  # away from initial zeros and ones: a weight put in the wrong place must show
            p.data += 0.05 * torch.randn_like(p)
        extra = {"final_proj.weight": torch.randn(12, 24) / 5, "final_proj.bias": torch.randn(12)}
    model.save_pretrained(folder)
    if final_proj:
        path = str(folder / "model.safetensors")
        save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})
    if normalise is not None:
        transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
    return folder
