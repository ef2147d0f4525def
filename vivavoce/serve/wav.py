"""The head of a WAV file whose length is known before its samples are."""

from __future__ import annotations

import struct


def wav_header(rate: int, samples: int) -> bytes:
    """44 bytes: mono, 16 bit."""
    size = 2 * samples
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16,
                       b"data", size)  # fmt: skip
