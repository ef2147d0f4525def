"""The embedded default: configs, safetensors, voices (see docs/model_card.md)."""
