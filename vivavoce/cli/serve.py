"""`vivavoce serve`."""

from __future__ import annotations

import argparse
import importlib.util
import os
from urllib.parse import urlsplit

from vivavoce.cli.common import Commands, command, model_option, positive
from vivavoce.core.errors import ConfigError, VivavoceError

EXAMPLES = """\
Open the address that it prints in a browser, on this machine. How many streams it takes at a time is measured when it
starts. docs/serve.md describes the protocol for other clients.

examples:
  vivavoce serve
  a quieter machine that may be late, but never gives the source back
                      vivavoce serve --late wait
  for others, with a token and https (without, browsers give no microphone)
                      VIVAVOCE_TOKEN=... vivavoce serve --host 0.0.0.0 --certificate cert.pem --key key.pem
  convert a file      curl --data-binary @in.wav 'http://localhost:8765/convert?voice=NAME' -o out.wav
"""


def add(commands: Commands) -> None:
    from vivavoce.serve.limits import Limits

    d = Limits()
    c = command(commands, "serve", serve, "serve live conversion: a web page and a WebSocket", EXAMPLES)
    c.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    c.add_argument("--port", type=port, default=8765, help="0 for any that is free (default 8765)")
    c.add_argument("--max-streams", type=auto, metavar="auto|N", help="live streams at a time (default: measured)")
    c.add_argument("--workers", type=auto, metavar="auto|N", help="processes for live streams (default: one a core)")
    c.add_argument("--late", choices=("bypass", "wait"), default=d.late,
                   help="a stream that falls behind gets its source back until it has caught up (bypass), or "
                        "everything is converted, however late (wait)")  # fmt: skip
    c.add_argument("--max-minutes", type=positive, default=round(d.stream / 60), metavar="M",
                   help="that a stream may last (default %(default)s)")  # fmt: skip
    c.add_argument("--max-upload", type=positive, default=d.upload_bytes >> 20, metavar="MB",
                   help="of a recording (default %(default)s)")  # fmt: skip
    c.add_argument("--max-seconds", type=positive, default=round(d.upload_seconds), metavar="S",
                   help="of a recording (default %(default)s)")  # fmt: skip
    c.add_argument("--max-voices", type=positive, default=d.voices, metavar="N",
                   help="enrolled voices kept in memory (default %(default)s)")  # fmt: skip
    c.add_argument("--token", default=os.environ.get("VIVAVOCE_TOKEN", ""),
                   help="that whoever uses it must present; better set VIVAVOCE_TOKEN, which no process list shows")
    c.add_argument("--allow-origin", action="append", default=[], type=origin, metavar="ORIGIN",
                   help="another site whose pages may use this server, such as https://example.org; repeatable")
    c.add_argument("--certificate", metavar="PEM", help="for https")
    c.add_argument("--key", metavar="PEM", help="of the certificate")
    model_option(c)


def serve(args: argparse.Namespace) -> int:
    missing = [m for m in ("starlette", "uvicorn", "websockets") if importlib.util.find_spec(m) is None]
    if missing:
        raise VivavoceError(f"serve needs {' and '.join(missing)}; pip install 'vivavoce[serve]'")
    if args.key and not args.certificate:
        raise ConfigError("--key without --certificate; https needs both")

    from vivavoce.serve.limits import Limits
    from vivavoce.serve.server import Options
    from vivavoce.serve.server import serve as run

    limits = Limits(late=args.late, stream=60.0 * args.max_minutes, upload_bytes=args.max_upload << 20,
                    upload_seconds=float(args.max_seconds), voices=args.max_voices)  # fmt: skip
    run(Options(args.host, args.port, args.model, args.workers, args.max_streams, limits, args.token,
                tuple(args.allow_origin), args.certificate, args.key))  # fmt: skip
    return 0


def auto(text: str) -> int | None:
    """`auto` or a whole number from 1."""
    return None if text == "auto" else positive(text)


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a port, 0 to 65535")
    return int(text)


def origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or text != f"{parts.scheme}://{parts.netloc}":
        raise argparse.ArgumentTypeError(f"{text!r}: expected an origin, such as https://example.org")
    return text
