"""What the server says no with."""

from __future__ import annotations

from typing import Any

from vivavoce.core.errors import VivavoceError

# Every error: its code -> the socket's close code (RFC 6455 and the IANA registry), the HTTP status that says the same.
ERRORS = {
    "bad-frame": (1007, 400), "bad-version": (1003, 400), "bad-rate": (1007, 400), "bad-channels": (1007, 400),
    "bad-format": (1007, 400), "bad-sequence": (1007, 400), "bad-message": (1007, 400), "bad-hello": (1007, 400),
    "no-hello": (1008, 400), "frame-too-long": (1009, 413), "too-fast": (1008, 429), "flood": (1008, 429),
    "stalled": (1008, 408), "idle": (1000, 408), "time-limit": (1000, 408), "bad-request": (1007, 400),
    "empty": (1007, 400), "no-consent": (1008, 400), "too-big": (1009, 413), "refused": (1008, 422),
    "bad-token": (1008, 401), "forbidden": (1008, 403), "foreign-host": (1008, 403), "foreign-origin": (1008, 403),
    "unknown-voice": (1008, 404), "full": (1013, 503), "busy": (1013, 503), "worker-lost": (1011, 500),
    "internal": (1011, 500),
}  # fmt: skip


class ProtocolError(VivavoceError):
    """What a client did wrong, or cannot have: a `code` of ERRORS for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.close, self.status = ERRORS[code]

    def json(self) -> dict[str, Any]:
        """The message that goes before the close."""
        return {"type": "error", "code": self.code, "message": str(self)}
