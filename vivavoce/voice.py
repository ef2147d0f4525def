"""A voice: a few seconds of units and codes, a pitch register, and who may use it. One small safe file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from vivavoce.core.checkpoint import load_tensors, save_tensors
from vivavoce.core.errors import CheckpointError
from vivavoce.lm import Source
from vivavoce.units import prosody

VOICE_FORMAT = 1
PARTS = ("content", "expression", "prosody", "codes")
MAPS = ("fit", "strangers")  # of the language model as well


@dataclass(frozen=True)
class Voice:
    """What the converter needs to know of a target speaker.

    Attributes:
        name: how it is called.
        content [P], expression [P, channels], prosody [P, 3], codes [P, K]: the prompt's units and codes.
        register: the speaker's mean pitch in Hz (geometric, over voiced frames).
        tokeniser: fingerprint of the models that made the units and codes.
        licence, consent, note: free text that travels with the file.
        fit: what the language model misses of this voice (vivavoce.fit), [d + 1, d]; None where nothing was fitted.
        strangers: how a crowd differs from what this voice says (vivavoce.guidance), [d + 1, d]; None where there
            was no crowd.
        fitted: fingerprint of the language model that both are of.
    """

    name: str
    content: Tensor
    expression: Tensor
    prosody: Tensor
    codes: Tensor
    register: float
    tokeniser: str
    licence: str = ""
    consent: str = ""
    note: str = ""
    fit: Tensor | None = None
    strangers: Tensor | None = None
    fitted: str = ""

    @property
    def frames(self) -> int:
        """Length of the prompt in 20 ms frames."""
        return int(self.content.shape[0])

    def source(self) -> Source:
        """The prompt's units with a batch dimension."""
        f0, periodicity, level = prosody.dequantise(self.prosody[None].long())
        return Source(self.content[None].long(), self.expression[None].long(), f0, periodicity, level)

    def unfitted(self) -> Voice:
        """The same voice without what is of one language model alone."""
        return replace(self, fit=None, strangers=None)

    def renamed(self, name: str) -> Voice:
        """The same voice under another name."""
        return replace(self, name=name)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically. Raises CheckpointError when that cannot be done."""
        meta = {"format": str(VOICE_FORMAT), "kind": "vivavoce-voice", "name": self.name,
                "register": repr(self.register), "tokeniser": self.tokeniser, "licence": self.licence,
                "consent": self.consent, "note": self.note, "fitted": self.fitted}  # fmt: skip
        tensors = {"content": self.content.to(torch.int32), "expression": self.expression.to(torch.uint8),
                   "prosody": self.prosody.to(torch.int16), "codes": self.codes.to(torch.int16)}  # fmt: skip
        tensors |= {k: x.half() for k in MAPS if (x := getattr(self, k)) is not None}
        try:
            save_tensors(path, tensors, meta)
        except (OSError, SafetensorError) as e:  # the latter is how safetensors tells of a full disk
            raise CheckpointError(f"{path}: cannot be written ({getattr(e, 'strerror', None) or e})") from None

    @classmethod
    def load(cls, path: str | Path) -> Voice:
        """Read a voice file. Raises CheckpointError when it is missing, foreign or of another format."""
        tensors, meta = load_tensors(path)
        if meta.get("kind") != "vivavoce-voice":
            raise CheckpointError(f"{path}: not a voice file; make one with `vivavoce enroll`")
        if meta.get("format") != str(VOICE_FORMAT):
            found = meta.get("format")
            raise CheckpointError(f"{path}: voice format {found}, this release reads {VOICE_FORMAT}")
        try:
            register = float(meta["register"])
            content, expression, units, codes = (tensors[k].long() for k in PARTS)
        except (KeyError, ValueError) as e:
            raise CheckpointError(f"{path}: incomplete voice file ({e})") from None
        if not (math.isfinite(register) and 20 < register < 2000):
            raise CheckpointError(f"{path}: impossible pitch register {register} Hz")
        words = {k: meta.get(k, "") for k in ("name", "tokeniser", "licence", "consent", "note", "fitted")}
        fit, strangers = (tensors[k].float() if k in tensors else None for k in MAPS)
        return cls(content=content, expression=expression, prosody=units, codes=codes, register=register, fit=fit,
                   strangers=strangers, **words)  # fmt: skip
