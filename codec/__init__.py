"""Target side: a causal source-filter codec. Envelope in residual-VQ codes; pitch and level beside them."""

from vivavoce.codec.model import Codec, CodecConfig

__all__ = ["Codec", "CodecConfig"]
