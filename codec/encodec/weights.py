"""Weights of other projects -> our folder: the original `.th` checkpoints, and the hub's layout (transformers).

Nothing is unpickled but tensors; weight norm (in either of PyTorch's namings) is folded into plain weights.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.codec.encodec.config import (
    COMPRESS,
    DILATION_BASE,
    KERNEL,
    OFFICIAL,
    RESIDUAL_KERNEL,
    EncodecConfig,
)
from vivavoce.codec.encodec.model import Encodec
from vivavoce.core.checkpoint import load_state, load_tensors, read_json, resolve_folder
from vivavoce.core.errors import CheckpointError

RENAMED = (  # reference, then transformers -> here
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(?:conv\.conv|convtr\.convtr)\.", ".conv."),
    (r"\.(?:conv|convtr)\.norm\.", ".norm."),
    (r"^quantizer\.(?:vq\.)?layers\.(\d+)\._?codebook\.embed$", r"quantiser.books.\1.vectors"),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
)
TRAINING_ONLY = re.compile(r"codebook\.(inited|cluster_size|embed_avg)$")
HUB_FIELDS = {  # of transformers' EncodecConfig -> of ours
    "sampling_rate": "sample_rate", "audio_channels": "channels", "target_bandwidths": "bandwidths",
    "upsampling_ratios": "ratios", "num_filters": "n_filters", "num_residual_layers": "residual_layers",
    "num_lstm_layers": "lstm_layers", "hidden_size": "dimension", "codebook_size": "codebook_size",
    "use_causal_conv": "causal", "normalize": "normalise", "chunk_length_s": "segment_seconds",
}  # fmt: skip
HUB_FIXED = {  # what our layers are built for; transformers leaves defaults out of config.json
    "kernel_size": KERNEL, "last_kernel_size": KERNEL, "residual_kernel_size": RESIDUAL_KERNEL,
    "dilation_growth_rate": DILATION_BASE, "compress": COMPRESS, "pad_mode": "reflect", "trim_right_ratio": 1.0,
    "use_conv_shortcut": True,
}  # fmt: skip


def open_encodec(name: str | Path) -> Encodec:
    """An EnCodec model from any of its forms.

    Args:
        name: our folder; the hub's folder or id (`facebook/encodec_24khz`); or an original checkpoint
            (`encodec_24khz-d7cc33bc.th`).

    Raises:
        CheckpointError: missing, holding code, or of another architecture (what differs is named).
    """
    path = Path(name)
    if path.is_file():
        if path.suffix == ".safetensors":
            return _from_hub(path.parent, path)
        return from_state(_read_checkpoint(path), str(path))
    folder = resolve_folder(name)
    head = read_json(folder / "config.json")
    if isinstance(head, dict) and head.get("model_type") == "encodec":
        return _from_hub(folder, folder / "model.safetensors")
    return Encodec.from_pretrained(folder)


def from_state(state: dict[str, Tensor], where: str, config: EncodecConfig | None = None) -> Encodec:
    """A model from the weights of the reference package or of transformers.

    Args:
        where: the weights' name in messages.
        config: of the model; without one, the official 48 kHz model where there are norms, else the 24 kHz one.

    Raises:
        CheckpointError: the weights do not fit; what differs is named.
    """
    own = folded({_renamed(k): v for k, v in state.items() if not TRAINING_ONLY.search(k)})
    kind = ""
    if config is None:
        kind = "48khz" if any(".norm." in k for k in own) else "24khz"
        config = OFFICIAL[kind]
    model = Encodec(config)
    try:
        load_state(model, own, where)
    except CheckpointError as e:
        model_of = f"the official {kind} EnCodec" if kind else "its config.json"
        raise CheckpointError(f"{e} (compared with {model_of})") from None
    return model.eval()


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight norm, w = g v / |v|, as plain weights; by PyTorch's own function, so that not a bit differs."""
    out = {}
    for k, v in state.items():
        if k.endswith(".weight_g") and k[:-1] + "v" in state:
            continue
        if k.endswith(".weight_v") and k[:-1] + "g" in state:
            k, v = k[:-2], torch._weight_norm(v, state[k[:-1] + "g"], 0)
        out[k] = v
    return out


def _renamed(key: str) -> str:
    for pattern, new in RENAMED:
        key = re.sub(pattern, new, key)
    return key


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # PyTorch raises many kinds, the unpickler's own among them
        if type(e).__name__ == "UnpicklingError":
            found = re.search(r"GLOBAL (\S+)", str(e))
            what = f"names {found[1]}" if found else "is not made of tensors alone"
            raise CheckpointError(f"{path}: refused: this pickle {what}, and loading it could run code; "
                                  "take the original checkpoint or the hub's safetensors") from None  # fmt: skip
        raise CheckpointError(f"{path}: not a PyTorch checkpoint ({type(e).__name__})") from None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        keys = ", ".join(map(str, list(state)[:3])) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: holds no EnCodec weights by name (but {keys or 'nothing'})")
    return state


def _from_hub(folder: Path, weights: Path) -> Encodec:
    head = read_json(folder / "config.json")
    if not isinstance(head, dict) or head.get("model_type") != "encodec":
        found = head.get("model_type") if isinstance(head, dict) else None
        raise CheckpointError(f"{folder}: holds {found!r}, expected transformers' 'encodec'")
    config = hub_config(head, str(folder / "config.json"))
    return from_state(load_tensors(weights)[0], str(weights), config)


def hub_config(head: dict[str, Any], where: str) -> EncodecConfig:
    """Our config of transformers' config.json. Raises CheckpointError for what our layers are not built for."""
    differ = [f"{k} {head[k]} (here {v})" for k, v in HUB_FIXED.items() if head.get(k, v) != v]
    norm = "weight_norm" if head.get("use_causal_conv", True) else "time_group_norm"
    if head.get("norm_type", "weight_norm") != norm:
        differ.append(f"norm_type {head.get('norm_type', 'weight_norm')} (here {norm})")
    if differ:
        raise CheckpointError(f"{where}: another architecture than the official EnCodec models: {', '.join(differ)}")
    given = {ours: head[theirs] for theirs, ours in HUB_FIELDS.items() if theirs in head}
    if head.get("overlap") is not None:
        given["overlap"] = head["overlap"]
    c = dataclasses.replace(EncodecConfig(), **given)
    bits = max(c.codebook_size - 1, 1).bit_length()
    return dataclasses.replace(c, n_codebooks=int(1000 * c.bandwidths[-1] // (c.frame_rate * bits)))
