"""The voices of a server: the model's, and those that visitors enrolled, in memory, until it ends."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Any

from vivavoce.serve.errors import ProtocolError


class Voices:
    """Voices by name or id.

    A voice is a person's: an enrolled one is listed to nobody, and found only by the id that whoever enrolled it
    was given.

    Args:
        embedded: what the workers said of the model's own voices.
        limit: enrolled voices kept; the one unused for longest goes.
    """

    def __init__(self, embedded: list[dict[str, Any]], limit: int) -> None:
        self.embedded = {about["name"]: about for about in embedded}
        self.limit = limit
        self._enrolled: OrderedDict[str, tuple[dict[str, Any], bytes]] = OrderedDict()

    def list(self) -> list[dict[str, Any]]:
        """What everyone may see."""
        return [{"id": name, **about} for name, about in self.embedded.items()]

    def find(self, id: str) -> tuple[dict[str, Any], bytes]:
        """What there is to say of a voice, and its file: empty for an embedded one.

        Raises:
            ProtocolError: `unknown-voice`.
        """
        if id in self.embedded:
            return self.embedded[id], b""
        if id not in self._enrolled:
            raise ProtocolError("unknown-voice", f"there is no voice {id[:80]!r} here; GET /voices lists those there "
                                "are, and an enrolled one is forgotten when the server ends")  # fmt: skip
        self._enrolled.move_to_end(id)
        return self._enrolled[id]

    def add(self, about: dict[str, Any], data: bytes) -> str:
        """Keep an enrolled voice; returns its id."""
        id = secrets.token_urlsafe(12)
        self._enrolled[id] = about, data
        while len(self._enrolled) > self.limit:
            self._enrolled.popitem(last=False)
        return id

    def remove(self, id: str) -> None:
        """Forget an enrolled voice. Raises ProtocolError: there is none, or it is the model's own."""
        if id in self.embedded:
            raise ProtocolError("forbidden", f"{id!r} is a voice of the model; only enrolled ones can be removed")
        self.find(id)
        del self._enrolled[id]

    def __len__(self) -> int:
        return len(self._enrolled)
