"""Who may come in, and how much each may take."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from vivavoce.serve.errors import ProtocolError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may take.

    Attributes:
        late: what becomes of a stream that falls behind: "bypass" gives the source back until it has caught up;
            "wait" converts everything, however late.
        late_after, recover_after: seconds of audio: of backlog that make a stream late; of punctual pass-through
            after which it is converted again (doubled each time it is late anew within ten times that).
        backlog: seconds of input that are held; beyond it the client is not read from.
        burst: seconds by which a client may be ahead of real time.
        idle: seconds without audio (or, before that, without a hello), after which a stream is closed.
        stall: seconds that a client may take to read what it is sent.
        stream: seconds that a stream may last.
        sockets: WebSockets open at a time, those included that have no stream yet.
        upload_bytes, upload_seconds: of one recording.
        jobs: files converted, and voices enrolled, at a time.
        voices: enrolled voices kept; the one unused for longest goes.
    """

    late: str = "bypass"
    late_after: float = 0.4
    recover_after: float = 1.0
    backlog: float = 2.0
    burst: float = 10.0
    idle: float = 30.0
    stall: float = 10.0
    stream: float = 3600.0
    sockets: int = 256
    upload_bytes: int = 64 << 20
    upload_seconds: float = 600.0
    jobs: int = 2
    voices: int = 32


@dataclass(frozen=True)
class Door:
    """Checks where a request comes from and what it brings.

    A page of another site can open sockets and post forms to this machine in a visitor's name; browsers tell
    by `Origin` that it does. And a name of its own that resolves to 127.0.0.1 (DNS rebinding) would make it the
    same origin, so on loopback only loopback's names are answered.

    Attributes:
        token: to be presented by whoever uses the server; empty for none.
        origins: other sites, such as `https://example.org`, whose pages may use it.
        loopback: whether the server is bound to this machine alone.
    """

    token: str = ""
    origins: tuple[str, ...] = ()
    loopback: bool = True

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Raises ProtocolError (403) for a page of another site, or a host name that is not ours."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin in self.origins:
            return
        if self.loopback and urlsplit(f"//{host}").hostname not in LOOPBACK:
            raise ProtocolError("foreign-host", f"this server answers to {' and '.join(LOOPBACK[:2])} only, not to "
                                f"{host!r}")  # fmt: skip
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise ProtocolError("foreign-origin", f"pages of {origin!r} may not use this server; start it with "
                                f"--allow-origin {origin}")  # fmt: skip

    def check_token(self, headers: Mapping[str, str], given: str = "") -> None:
        """Raises ProtocolError (401) unless the token came as `Authorization: Bearer`, or is `given`."""
        kind, _, word = headers.get("authorization", "").partition(" ")
        token = given or (word.strip() if kind.lower() == "bearer" else "")
        if self.token and not hmac.compare_digest(token.encode(), self.token.encode()):
            said = "is wrong" if token else "is missing"
            raise ProtocolError("bad-token", f"the access token {said}; ask whoever runs this server")
