"""What commands share: how a command is added, options, and words that stand for numbers."""

from __future__ import annotations

import argparse
import re
from typing import Any

from vivavoce.core.cores import cores

Commands = Any  # argparse's sub-parsers


def command(commands: Commands, name: str, run: Any, help: str, epilog: str) -> argparse.ArgumentParser:
    """Add a command whose `run(args)` returns the exit status; `epilog` shows examples."""
    c = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=epilog,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    c.set_defaults(run=run, parser=c)
    return c


def model_option(c: argparse.ArgumentParser) -> None:
    c.add_argument("--model", metavar="DIR", help="model folder or hub id (default: the embedded one)")


def overrides_argument(c: argparse.ArgumentParser) -> None:
    c.add_argument("overrides", metavar="key=value", nargs="*", help="settings; a.b=value reaches inside")


def duration(text: str) -> float:
    """`40ms` or `0.5s` -> seconds, 1 ms to 600 s."""
    return _seconds(text, "40ms or 0.5s, 1ms to 600s", 600.0)


def long_duration(text: str) -> float:
    """`30s`, `10m` or `2h` -> seconds, up to a day."""
    return _seconds(text, "30s, 10m or 2h, up to 24h", 86_400.0)


def _seconds(text: str, expected: str, most: float) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text.strip())
    seconds = float(found[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]] if found else 0.0
    if not 0.001 <= seconds <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a duration such as {expected}")
    return seconds


def source_pitch(text: str) -> str | float:
    """`auto`, `live` or a number of Hz."""
    try:
        return text if text in ("auto", "live") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, live or a number of Hz") from None


def threads_option(parser: argparse._ActionsContainer) -> None:
    """`--threads`, by default as many as help."""
    parser.add_argument("--threads", type=positive, default=min(2, cores()), metavar="N",
                        help="1, or 2: one hears ahead while the other speaks (default: 2 if there are cores)")


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)
