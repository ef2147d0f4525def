"""The command line: a module a command. Heavy imports stay inside the commands, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

from vivavoce import __version__
from vivavoce.cli import bench, convert, corpus, import_, live, report, serve, training, voices
from vivavoce.core.errors import VivavoceError

# in the order of --help; each has `add(commands)`
COMMANDS = (convert, live, serve, voices, corpus, training, import_, report, bench)
OVERVIEW = """\
examples:
  vivavoce voices
  vivavoce convert laughing.wav -o out.wav --voice someone.wav
  vivavoce enroll someone.wav -o someone.voice --consent "signed 2026-01-15"
  vivavoce convert recordings/ -o converted/ --voice someone.voice
  vivavoce report recordings/ converted/ -o report/
  vivavoce COMMAND --help
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    p = argparse.ArgumentParser(
        prog="vivavoce", epilog=OVERVIEW, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The same speech in another voice: laughter, crying and every shade of emotion kept.",
    )  # fmt: skip
    p.add_argument("--version", action="version", version=f"vivavoce {__version__}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. What the user can mend is told in one line, without a
    traceback, and leaves nothing half-written."""
    if argv is None:  # the process is ours: a polite kill cleans up like Ctrl-C does
        signal.signal(signal.SIGTERM, _terminated)
    args, rest = parser().parse_known_args(argv)
    if any("=" not in x or x.startswith("-") for x in rest) or (rest and "overrides" not in args):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse leaves `key=value` behind an option to us
        args.overrides = [*args.overrides, *rest]
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _tell("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has gone
        _drop_output()
        return 141  # 128 + SIGPIPE, as a shell reports it
    except VivavoceError as e:
        return _tell(str(e), 1)
    except OSError as e:
        _drop_output()
        return _tell(": ".join(str(x) for x in (e.filename, e.strerror or e) if x), 1)


def _terminated(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _drop_output() -> None:
    """What stdout could not take must not be tried again, with a traceback, when the interpreter exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(text: str, status: int) -> int:
    print(f"vivavoce: {' '.join(text.split())}", file=sys.stderr)
    return status
