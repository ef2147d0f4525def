"""EnCodec (Défossez et al. 2022, "High Fidelity Neural Audio Compression") that streams in both directions."""

from vivavoce.codec.encodec.config import EncodecConfig
from vivavoce.codec.encodec.model import Encodec, Segment
from vivavoce.codec.encodec.stream import EncodecDecoderStream, EncodecEncoderStream

__all__ = ["Encodec", "EncodecConfig", "EncodecDecoderStream", "EncodecEncoderStream", "Segment"]
