"""HuBERT, ContentVec, wav2vec 2.0 and XLS-R weights in fairseq2's wav2vec 2.0 encoder.

The three share one architecture; what fairseq2 calls "base" (group norm, post-norm) and "large_lv60k" (layer norm,
pre-norm) are its two forms. fairseq2 has no counterpart of WavLM's gated relative positions. fairseq2's wheels pin a
PyTorch of their own: `tools/fairseq2_env.sh` makes an environment for it.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from vivavoce.core.checkpoint import load_state
from vivavoce.core.errors import CheckpointError, ConfigError
from vivavoce.units.hubert.checkpoint import Checkpoint

NAMES = (  # the hub's -> fairseq2's, in one module of `frontend` and `encoder`
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"frontend.feature_extractor.layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", r"frontend.feature_extractor.layers.\1.layer_norm."),
    (r"feature_projection\.layer_norm\.", "frontend.post_extract_layer_norm."),
    (r"feature_projection\.projection\.", "frontend.model_dim_proj."),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "frontend.pos_encoder.conv.weight_g"),
    (r"encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "frontend.pos_encoder.conv.weight_v"),
    (r"encoder\.pos_conv_embed\.conv\.", "frontend.pos_encoder.conv."),
    (r"encoder\.layers\.(\d+)\.attention\.out_proj\.", r"encoder.layers.\1.self_attn.output_proj."),
    (r"encoder\.layers\.(\d+)\.attention\.", r"encoder.layers.\1.self_attn."),
    (r"encoder\.layers\.(\d+)\.layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.", r"encoder.layers.\1.ffn.inner_proj."),
    (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.", r"encoder.layers.\1.ffn.output_proj."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"encoder.layers.\1.ffn_layer_norm."),
)


def encoder_config(checkpoint: Checkpoint) -> Any:
    """The checkpoint's architecture as fairseq2's `Wav2Vec2EncoderConfig`, for inference: no dropout.

    Raises:
        ConfigError: fairseq2 is not installed.
        CheckpointError: an architecture that fairseq2's encoder does not have, the difference named.
    """
    try:
        from fairseq2.models.transformer import TransformerNormOrder
        from fairseq2.models.wav2vec2 import Wav2Vec2EncoderConfig
    except ImportError:
        raise ConfigError("backend fairseq2 needs fairseq2, which pins a PyTorch of its own: "
                          "tools/fairseq2_env.sh makes an environment for it") from None
    c = {"hidden_size": 768, "conv_dim": [512] * 7, "conv_bias": False, "feat_extract_norm": "group",
         "do_stable_layer_norm": False, "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16,
         "num_attention_heads": 12, "intermediate_size": 3072, **checkpoint.config}  # fmt: skip
    for key, want in (("hidden_act", "gelu"), ("feat_extract_activation", "gelu"), ("layer_norm_eps", 1e-5),
                      ("feat_proj_layer_norm", True), ("conv_pos_batch_norm", False)):  # fmt: skip
        if c.get(key, want) != want:
            raise CheckpointError(f"{checkpoint.name}: {key} is {c[key]}, fairseq2's encoder has {want}")
    if checkpoint.kind == "wavlm" or c.get("add_adapter") or c.get("adapter_attn_dim"):
        what = "relative positions" if checkpoint.kind == "wavlm" else "adapters"
        raise CheckpointError(f"{checkpoint.name}: fairseq2's encoder has no counterpart of its {what}; "
                              "use backend transformers")
    if c["conv_dim"][-1] == c["hidden_size"]:
        raise CheckpointError(f"{checkpoint.name}: fairseq2's encoder has no projection where features and layers "
                              f"are equally wide ({c['hidden_size']}); use backend transformers")
    stable = bool(c["do_stable_layer_norm"])
    return Wav2Vec2EncoderConfig(
        model_dim=c["hidden_size"],
        feature_dim=c["conv_dim"][-1],
        layer_norm_features=not stable,
        feature_extractor_layer_descs=[(d, k, s) for d, (k, s) in zip(c["conv_dim"], checkpoint.stack)],
        feature_extractor_bias=bool(c["conv_bias"]),
        feature_extractor_layer_norm_convs=c["feat_extract_norm"] == "layer",
        pos_conv_kernel_size=c["num_conv_pos_embeddings"],
        num_pos_conv_groups=c["num_conv_pos_embedding_groups"],
        num_encoder_layers=checkpoint.layers,
        num_encoder_attn_heads=c["num_attention_heads"],
        ffn_inner_dim=c["intermediate_size"],
        norm_order=TransformerNormOrder.PRE if stable else TransformerNormOrder.POST,
        dropout_p=0.0,
        attn_dropout_p=0.0,
        layer_drop_p=0.0,
        feature_grad_scale=1.0,
    )


def convert(tensors: dict[str, Tensor], stable: bool, group: bool) -> dict[str, Tensor]:
    """The hub's names -> fairseq2's, below `frontend.` and `encoder.`; heads and the pre-training mask are left out.

    Args:
        stable: pre-norm, where the norm beside the layers comes after the last and not before the first.
        group: the first convolution has a group norm.
    """
    out = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^encoder\.layer_norm\.", "encoder.layer_norm." if stable else "frontend.layer_norm.", name)
        for old, new in NAMES:
            changed, hit = re.subn("^" + old, new, name)
            if hit:
                name = changed
                break
        if group:
            name = name.replace("feature_extractor.layers.0.layer_norm.", "feature_extractor.layers.0.group_norm.")
        if name.startswith(("frontend.", "encoder.")):
            out[name] = tensor.float()
    return out


class Fairseq2Body(nn.Module):
    """fairseq2's encoder with the weights of a hub checkpoint, cut after `layer`: [B, n] -> [B, T, dim].

    Raises:
        ConfigError, CheckpointError: see `encoder_config`; weights that do not fit.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        super().__init__()
        config = encoder_config(checkpoint)
        from fairseq2.models.wav2vec2 import Wav2Vec2EncoderFactory

        factory = Wav2Vec2EncoderFactory(config)
        self.frontend, self.encoder = factory.create_encoder_frontend(), factory.create_encoder()
        stable = bool(checkpoint.config.get("do_stable_layer_norm"))
        group = not config.feature_extractor_layer_norm_convs
        load_state(self, convert(dict(checkpoint.tensors()), stable, group), checkpoint.name)
        if layer < checkpoint.layers:
            self.encoder.layers = self.encoder.layers[:layer]
            if stable:
                self.encoder.layer_norm = None

    def forward(self, x: Tensor) -> Tensor:
        from fairseq2.nn import BatchLayout

        y, layout = self.frontend(x, BatchLayout.of(x))
        return self.encoder(y, layout)
