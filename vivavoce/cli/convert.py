"""`vivavoce convert`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from vivavoce.cli.common import (
    Commands,
    command,
    duration,
    model_option,
    positive,
    source_pitch,
    threads_option,
)
from vivavoce.core.errors import VivavoceError

EXAMPLES = """\
A voice is an embedded name (see `vivavoce voices`), a .voice file (see `vivavoce enroll`), or a recording of
3 to 10 s of the target's clean speech. Output is mono, at the source's rate, as long as the source to the sample.
The same seed gives the same bits, in any chunking.

examples:
  one file            vivavoce convert laughing.wav -o out.wav --voice NAME
  a folder, tree and all; what is finished is skipped, so run it again after a break
                      vivavoce convert recordings/ -o converted/ --voice someone.voice
  a live pipe         arecord -t raw -f S16_LE -r 16000 | vivavoce convert - --voice NAME | \\
                      aplay -t raw -f S16_LE -r 16000
  said again, not mapped: the target's own timing, so the output's length is free (files only)
                      vivavoce convert in.wav -o out.wav --voice NAME --mode translate \\
                      --translator runs/translate/export
  any file format     ffmpeg -v error -i film.mkv -f s16le -ac 1 -ar 48000 - | \\
                      vivavoce convert - --rate 48000 -o film.wav --voice someone.wav
  would it be in time live, beside two busy programs
                      vivavoce convert laughing.wav --voice NAME --simulate-stream --load 2
"""


def add(commands: Commands) -> None:
    c = command(commands, "convert", convert, "convert a file, a folder, or raw PCM on standard input", EXAMPLES)
    c.add_argument("source", metavar="SOURCE",
                   help="audio file (wav, flac, ogg, opus, mp3), folder, or - for raw 16-bit PCM on stdin")  # fmt: skip
    c.add_argument("-o", "--out", metavar="OUT",
                   help="audio file or folder; default <stem>.<voice>.wav beside the source, stdout for -")  # fmt: skip
    c.add_argument("--voice", required=True, metavar="VOICE", help="embedded name, .voice file or recording")
    c.add_argument("--seed", type=int, default=0, help="of all randomness (default 0)")
    c.add_argument("--guidance", type=float, metavar="G",
                   help="0 to 5: more likeness to the voice, less clear words; of speech alone (default: as tuned)")
    c.add_argument("--fit", type=float, metavar="SHARE",
                   help="0 to 1: of what was fitted to the voice's own reference; of speech alone (default: as tuned)")
    c.add_argument("--keep", type=float, metavar="SHARE",
                   help="0 to 1: of the source's own fast movements; clearer words, more of laughs and breath, less "
                        "likeness (default: as tuned)")  # fmt: skip
    c.add_argument("--temperature", type=float, metavar="T",
                   help="of sampling; 0 always takes the likeliest; for autoregressive models, "
                        "which the embedded one is not (default: as tuned)")  # fmt: skip
    c.add_argument("--delay", type=int, metavar="FRAMES",
                   help="let the model look this many frames of 20 ms further ahead "
                        "(default 1 for a file that is heard beforehand, else 0)")  # fmt: skip
    c.add_argument("--transpose", type=float, default=0.0, metavar="SEMITONES",
                   help="shift the output's pitch from the target's register (default 0)")  # fmt: skip
    c.add_argument("--chunk", type=duration, metavar="40ms",
                   help="audio taken at a time; the result is the same (default 40ms from stdin, else 1s)")  # fmt: skip
    c.add_argument("--source-pitch", type=source_pitch, default="auto", metavar="auto|live|HZ",
                   help="mean pitch of the source: heard beforehand (auto; files), learnt on the way (live; "
                        "always so from stdin), or given; who laughs or cries and never speaks keeps "
                        "the pitch")  # fmt: skip
    threads_option(c)
    c.add_argument("--overwrite", action="store_true", help="in a folder, convert again what is finished")
    c.add_argument("--rate", type=positive, metavar="HZ", help="of stdin and stdout (default 16000)")
    c.add_argument("--channels", type=positive, metavar="N", help="channels on stdin (default 1); stdout is mono")
    c.add_argument("--simulate-stream", action="store_true",
                   help="feed the file at the pace of a microphone and tell how late its chunks (default 40ms) are "
                        "ready; the output is the same")  # fmt: skip
    c.add_argument("--buffer", type=duration, metavar="40ms",
                   help="of playback, in the simulation: what is later is an underrun (default: a chunk)")  # fmt: skip
    c.add_argument("--load", type=positive, metavar="N", help="in the simulation: beside N busy processes")
    c.add_argument("--speed", type=float, metavar="X", help="in the simulation: a clock X times as fast (default 1)")
    c.add_argument("--mode", choices=("follow", "translate"), default="follow",
                   help="follow: frame by frame, as long as the source to the sample (default); translate: units "
                        "are translated, so timing and LENGTH are free (0.5 to 2 times the source's); for files, "
                        "needs --translator")  # fmt: skip
    c.add_argument("--translator", metavar="DIR", help="translate: what `vivavoce train translate` exported")
    c.add_argument("--to-emotion", metavar="LABEL", help="translate: an emotion that the translator was trained with")
    model_option(c)


def convert(args: argparse.Namespace) -> int:
    raw = args.source == "-"
    if not raw and (args.rate or args.channels):
        args.parser.error("--rate and --channels describe raw PCM on standard input; a file says its own")
    if not raw and not Path(args.source).exists():
        raise VivavoceError(f"{args.source}: no such file or folder")
    simulated = args.simulate_stream
    if not simulated and (args.buffer or args.load or args.speed is not None):
        args.parser.error("--buffer, --load and --speed belong to --simulate-stream")
    if simulated and (raw or Path(args.source).is_dir()):
        args.parser.error("--simulate-stream takes one file")
    if args.speed is not None and not 0.01 <= args.speed <= 1000:
        args.parser.error("--speed: expected 0.01 to 1000")
    if raw and (sys.stdin.isatty() or (args.out in (None, "-") and sys.stdout.isatty())):
        raise VivavoceError("raw PCM does not go with a terminal; pipe it in and out, or name a file with -o")

    translate = args.mode == "translate"
    if translate and (raw or not args.translator):
        args.parser.error("--mode translate needs a file or folder, and --translator DIR")
    if not translate and (args.translator or args.to_emotion):
        args.parser.error("--translator and --to-emotion belong to --mode translate")

    from vivavoce.changer import load
    from vivavoce.convert import Job, convert_path, convert_pcm
    from vivavoce.engine import Settings

    pitch = args.source_pitch if isinstance(args.source_pitch, float) else None
    given = {k: v for k in ("temperature", "guidance", "fit", "keep") if (v := getattr(args, k)) is not None}
    settings = Settings(args.seed, delay=args.delay, transpose=args.transpose, source_register=pitch, **given)
    changer = load(args.model, threads=args.threads)
    voice = changer.voice(args.voice)
    keep = () if args.voice in changer.voices else (Path(args.voice),)
    seconds = args.chunk or (0.04 if raw else 1.0)
    job = Job(changer, voice, settings, seconds, args.source_pitch == "auto", keep)
    if translate:
        from vivavoce.translate import TranslationMode

        mode = TranslationMode(changer, args.translator, args.model, args.to_emotion)
        job = replace(job, converter=mode.convert_blocks)
    out = None if args.out is None or (raw and args.out == "-") else Path(args.out)
    if simulated:
        from vivavoce.simulate import Lateness, SimulatedJob, busy

        lateness = Lateness(args.chunk or 0.04, args.buffer or args.chunk or 0.04)
        job = SimulatedJob(**vars(job), lateness=lateness, speed=args.speed or 1.0)
        with busy(args.load or 0):
            tally = convert_path(job, Path(args.source), out, args.overwrite)
        print(f"vivavoce: {lateness}", file=sys.stderr)
    elif raw:
        rate, channels = args.rate or 16000, args.channels or 1
        tally = convert_pcm(job, sys.stdin.buffer, out or sys.stdout.buffer, rate, channels)
    else:
        tally = convert_path(job, Path(args.source), out, args.overwrite)
    print(f"vivavoce: {tally}", file=sys.stderr)
    return 1 if tally.failed else 0
