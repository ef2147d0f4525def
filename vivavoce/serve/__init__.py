"""`vivavoce serve`: live conversion over WebSocket, files over HTTP, and a web page; see docs/serve.md.

The server's own process never computes: it reads and writes sockets, so its event loop never waits. Conversion runs
in worker processes (`worker`, driven by `pool`), one a core for live streams and one, at lower priority, for files
and enrolment. `protocol` is what goes over the wire, `session` one live stream, `limits` who may do how much.
"""
