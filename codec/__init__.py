"""Target side. `Codec` is our causal source-filter codec: envelope in residual-VQ codes, pitch and level beside them.

`Encodec` is EnCodec with the official weights, offline and as a stream in both directions; see `codec.encodec`.
"""

from vivavoce.codec.encodec import Encodec, EncodecConfig, EncodecDecoderStream, EncodecEncoderStream
from vivavoce.codec.encodec.voice import EncodecVoice
from vivavoce.codec.load import VoiceCodec, codec_folder, load_codec
from vivavoce.codec.model import Codec, CodecConfig

__all__ = [
    "Codec",
    "CodecConfig",
    "Encodec",
    "EncodecConfig",
    "EncodecDecoderStream",
    "EncodecEncoderStream",
    "EncodecVoice",
    "VoiceCodec",
    "codec_folder",
    "load_codec",
]
