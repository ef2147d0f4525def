"""A codec by what its folder says it is."""

from __future__ import annotations

from pathlib import Path

from vivavoce.codec.encodec.model import Encodec
from vivavoce.codec.encodec.voice import EncodecVoice
from vivavoce.codec.encodec.weights import open_encodec
from vivavoce.codec.model import Codec
from vivavoce.core.checkpoint import read_json, resolve_folder

VoiceCodec = Codec | EncodecVoice


def codec_folder(name: str | Path) -> Path:
    """Where a codec lies: a folder, or a hub id, or `encodec_24khz` for the official model on the hub.

    Raises:
        CheckpointError: neither.
    """
    official = str(name) == "encodec_24khz" and not Path(name).exists()
    return resolve_folder("facebook/encodec_24khz" if official else name)


def load_codec(name: str | Path) -> VoiceCodec:
    """The codec in a folder or on the hub: ours, or EnCodec (imported, or in the hub's own layout).

    Raises:
        CheckpointError: missing, foreign, or of another architecture.
        ConfigError: an EnCodec model that cannot stream.
    """
    folder = codec_folder(name)
    head = read_json(folder / "config.json")
    if isinstance(head, dict) and head.get("model_type") in ("encodec", Encodec.model_type):
        return EncodecVoice(open_encodec(folder)).eval()
    return Codec.from_pretrained(folder)
