"""`vivavoce enroll` and `vivavoce voices`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vivavoce.cli.common import Commands, command, model_option
from vivavoce.core.errors import VivavoceError

ENROLL = """\
A voice file holds units and codes of the loudest few seconds, the mean pitch, and the words given here. It is no
recording, but it does carry the voice: ask the speaker, and write down that you did.

examples:
  vivavoce enroll someone.wav -o someone.voice
  vivavoce enroll someone.wav -o someone.voice --name Someone --licence CC-BY-4.0 --consent "signed 2026-01-15"
"""
VOICES = """\
examples:
  vivavoce voices
  vivavoce voices --json | jq -r '.[].name'
"""


def add(commands: Commands) -> None:
    c = command(commands, "enroll", enroll, "make a voice file from a recording of 3 to 10 s of clean speech", ENROLL)
    c.add_argument("recording", metavar="RECORDING", help="audio file")
    c.add_argument("-o", "--out", required=True, metavar="X.voice", help="voice file to write")
    c.add_argument("--name", help="of the voice (default: the recording's file name)")
    c.add_argument("--licence", default="", help="under which the voice may be used")
    c.add_argument("--consent", default="", help="who agreed to this use of the voice, when and how")
    c.add_argument("--note", default="", help="anything else")
    model_option(c)

    c = command(commands, "voices", voices, "list the embedded voices", VOICES)
    c.add_argument("--json", action="store_true", help="for programs")
    model_option(c)


def enroll(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if out.suffix != ".voice":
        args.parser.error(f"-o {args.out}: a voice file's name ends in .voice")
    if out.exists() and out.samefile(args.recording):
        raise VivavoceError(f"{out}: would overwrite the recording itself")

    from vivavoce.changer import load

    voice = load(args.model).enroll(
        args.recording, name=args.name, licence=args.licence, consent=args.consent, note=args.note
    )
    voice.save(out)
    print(f"{out}: {voice.name}, {voice.register:.0f} Hz, {voice.frames / 50:.1f} s of prompt")
    return 0


def voices(args: argparse.Namespace) -> int:
    from vivavoce.changer import load

    found = load(args.model).voices.values()
    rows: list[dict[str, Any]] = [
        {"name": v.name, "register_hz": round(v.register, 1), "seconds": round(v.frames / 50, 2),
         "licence": v.licence, "consent": v.consent, "note": v.note} for v in found
    ]  # fmt: skip
    if args.json:
        import json

        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    width = max((len(r["name"]) for r in rows), default=0)
    for r in rows:
        words = "  ".join(w for w in (r["licence"], r["note"]) if w)
        print(f"{r['name']:<{width}}  {r['register_hz']:5.0f} Hz  {r['seconds']:4.1f} s  {words}".rstrip())
    return 0
