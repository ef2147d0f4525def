"""Decoder-only transformer: a stream of source units, prompted with a voice, into codec codes."""

from vivavoce.lm.model import LMConfig, LMState, Source, VoiceLM

__all__ = ["LMConfig", "LMState", "Source", "VoiceLM"]
