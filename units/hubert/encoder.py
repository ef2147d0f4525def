"""A frozen speech model of the HuBERT family, cut after one of its layers, on our frame grid.

The grid. The family's convolutions make frame j of samples [320 j, 320 j + 400): n samples give
floor((n - 400) / 320) + 1 frames, and frame j is centred on sample 320 j + 200. Ours is centred on sample 320 t. So
200 zeros go before a clip of T * 320 samples, and its last 120 samples are left unheard: frame t is then made of
[320 t - 200, 320 t + 200), centred on 320 t, and there are T of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.units.hubert.checkpoint import KINDS, Checkpoint

BACKENDS = ("transformers", "fairseq2")
PIECE_SECONDS, MARGIN_SECONDS = 30.0, 2.0  # longer clips are heard in pieces: attention's cost grows with the square


class SpeechEncoder(nn.Module):
    """Waveforms to the hidden states of one layer, a frame for each `hop` samples.

    Args:
        layer: 0 (what enters the first transformer layer) to the number of layers (what the model gives, its last
            norm included): the index in transformers' `hidden_states`. Layers above are dropped.
        final_proj: put the checkpoint's own final projection on top (ContentVec, HuBERT in pre-training).
        backend: the library that computes: `transformers` or `fairseq2`.

    Raises:
        ConfigError: a library that is not installed, a layer that is not there.
        CheckpointError: weights that do not fit.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int, final_proj: bool = False, backend: str = "transformers",
                 ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= layer <= checkpoint.layers:
            raise ConfigError(f"layer {layer}: {checkpoint.name} has layers 0 to {checkpoint.layers}")
        if backend not in BACKENDS:
            raise ConfigError(f"backend {backend!r}: use {' or '.join(BACKENDS)}")
        self.checkpoint, self.layer, self.hop = checkpoint, layer, checkpoint.hop
        self.body = _bodies()[backend](checkpoint, layer).eval().requires_grad_(False)
        self.final_proj = _final_proj(checkpoint) if final_proj else None
        width = checkpoint.config.get("hidden_size", 768)
        self.dim = width if self.final_proj is None else self.final_proj.out_features

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def heard(self, x: Tensor) -> Tensor:
        """Waveform [B, T * hop] -> what the model is given: normalised, on the grid."""
        if self.checkpoint.normalise:
            x = x - x.mean(1, keepdim=True)
            x = x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-7)
        before = self.checkpoint.reach // 2
        return F.pad(x, (before, self.checkpoint.reach - self.hop - before))

    def forward(self, x: Tensor) -> Tensor:
        """Waveform [B, T * hop] -> hidden states [B, T, dim]. Raises ValueError for other lengths."""
        if x.shape[1] % self.hop or not x.shape[1]:
            raise ValueError(f"{x.shape[1]} samples are not a whole number of {self.hop}-sample frames")
        piece, margin = (round(s * 50) * self.hop for s in (PIECE_SECONDS, MARGIN_SECONDS))
        if x.shape[1] <= piece + 2 * margin:
            return self._hear(x)
        parts = []
        for at in range(0, x.shape[1], piece):
            first = max(0, at - margin)
            y = self._hear(x[:, first : at + piece + margin])
            parts.append(y[:, (at - first) // self.hop :][:, : piece // self.hop])
        return torch.cat(parts, dim=1)

    def _hear(self, x: Tensor) -> Tensor:
        y = self.body(self.heard(x))
        return y if self.final_proj is None else self.final_proj(y)


class TransformersBody(nn.Module):
    """The model as `transformers` has it: [B, n] -> [B, T, dim]."""

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError:
            raise ConfigError('HuBERT units need transformers: pip install "vivavoce[hubert]"') from None
        logs = transformers.utils.logging
        before, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
        logs.set_verbosity_error()  # of heads that we leave out on purpose
        logs.disable_progress_bar()
        try:
            model, report = getattr(transformers, KINDS[checkpoint.kind]).from_pretrained(
                str(checkpoint.folder), use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, TypeError) as e:
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            raise CheckpointError(f"{checkpoint.name}: transformers cannot load it ({reason})") from None
        finally:
            logs.set_verbosity(before)
            if bars:
                logs.enable_progress_bar()
        missing = [k for k in report["missing_keys"] if k != "masked_spec_embed"]  # the mask of pre-training
        if missing or report.get("mismatched_keys"):
            wrong = sorted(missing or map(str, report["mismatched_keys"]))
            raise CheckpointError(f"{checkpoint.name}: its weights do not fit its config.json: {wrong[:3]}")
        if layer < checkpoint.layers:
            model.encoder.layers = model.encoder.layers[:layer]
            if checkpoint.config.get("do_stable_layer_norm"):  # pre-norm: this one comes after the last layer
                model.encoder.layer_norm = nn.Identity()
        self.model = model.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).last_hidden_state


def _fairseq2_body(checkpoint: Checkpoint, layer: int) -> nn.Module:
    from vivavoce.units.hubert.fairseq import Fairseq2Body

    return Fairseq2Body(checkpoint, layer)


def _bodies() -> dict[str, Callable[[Checkpoint, int], Any]]:
    return dict(zip(BACKENDS, (TransformersBody, _fairseq2_body)))


def _final_proj(checkpoint: Checkpoint) -> nn.Linear:
    found = {k: t for k, t in checkpoint.tensors() if k in ("final_proj.weight", "final_proj.bias")}
    if len(found) != 2:
        raise CheckpointError(f"{checkpoint.name}: has no final_proj; set final_proj: false")
    weight, bias = found["final_proj.weight"].float(), found["final_proj.bias"].float()
    out = nn.Linear(weight.shape[1], weight.shape[0])
    out.load_state_dict({"weight": weight, "bias": bias})
    return out.requires_grad_(False)
