"""The command line. Heavy imports stay inside the commands, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from vivavoce import __version__
from vivavoce.core.errors import ConfigError, VivavoceError

TRAINING_PACKAGES = {"accelerate", "datasets", "pyarrow", "sklearn", "swift_f0", "tensorboard"}
RECIPES = {  # stage -> module of vivavoce.recipes, its config, its function
    "codec": ("train_codec", "CodecRecipe", "run"),
    "units": ("train_units", "UnitsRecipe", "run"),
    "lm": ("train_lm", "LMRecipe", "run"),
    "tagger": ("train_tagger", "TaggerRecipe", "run"),
    "default": ("default", "DefaultRecipe", "run"),
    "prepare": ("corpus", "PrepareConfig", "prepare"),
    "tokenise": ("tokenise", "TokeniseConfig", "run"),
    "label": ("label", "LabelConfig", "run"),
}
TRAIN_STAGES = ("codec", "units", "lm", "default", "tagger", "label")

OVERVIEW = """\
examples:
  vivavoce voices
  vivavoce convert laughing.wav -o out.wav --voice someone.wav
  vivavoce enroll someone.wav -o someone.voice --consent "signed 2026-01-15"
  vivavoce convert recordings/ -o converted/ --voice someone.voice
  vivavoce COMMAND --help
"""
CONVERT = """\
A voice is an embedded name (see `vivavoce voices`), a .voice file (see `vivavoce enroll`), or a recording of
3 to 10 s of the target's clean speech. Output is mono, at the source's rate, as long as the source to the sample.
The same seed gives the same bits, in any chunking.

examples:
  one file            vivavoce convert laughing.wav -o out.wav --voice NAME
  a folder, tree and all; what is finished is skipped, so run it again after a break
                      vivavoce convert recordings/ -o converted/ --voice someone.voice
  a live pipe         arecord -t raw -f S16_LE -r 16000 | vivavoce convert - --voice NAME | \\
                      aplay -t raw -f S16_LE -r 16000
  any file format     ffmpeg -v error -i film.mkv -f s16le -ac 1 -ar 48000 - | \\
                      vivavoce convert - --rate 48000 -o film.wav --voice someone.wav
"""
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
PREPARE = """\
CORPUS is a folder with a manifest.jsonl (a line a clip: id, path, speaker, licence, split ...; clips loose or in
tar shards), or any folder of recordings, a sub-folder a speaker. An interrupted run goes on where it stopped.

examples:
  vivavoce prepare recordings/ -o runs/pack
  vivavoce prepare corpus/ -o runs/pack teacher=labels.npz workers=8
  vivavoce prepare recipes/prepare.yaml corpus=corpus/ out=runs/pack
"""
TOKENIZE = """\
SOURCE is a corpus (see `vivavoce prepare`; it is packed into OUT/pack first) or a pack. The shards are Parquet:
`datasets.load_dataset("parquet", data_dir=OUT)` reads them. An interrupted run goes on where it stopped.

examples:
  vivavoce tokenize corpus/ -o units/
  vivavoce tokenize runs/pack -o runs/tokens --model runs/default views=4 precision=bf16
  vivavoce tokenize recipes/tokenise.yaml pack=runs/pack out=runs/tokens
"""
TRAIN = """\
CONFIG is a YAML file, or the bare name of one that ships with vivavoce; without it, the stage's own. Its header
says what the stage needs and how long it takes. A run that was stopped goes on from its last checkpoint.

examples:
  vivavoce train default corpus=corpus/ out=runs/mine            corpus to model folder, all stages
  vivavoce train codec recipes/codec.yaml pack=runs/pack train.out=runs/codec
  vivavoce train lm lm tokens=runs/tokens train.budget_minutes=60
  accelerate launch --num_processes 4 -m vivavoce train codec my.yaml
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    p = argparse.ArgumentParser(
        prog="vivavoce", epilog=OVERVIEW, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The same speech in another voice: laughter, crying and every shade of emotion kept.",
    )  # fmt: skip
    p.add_argument("--version", action="version", version=f"vivavoce {__version__}")
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Any, help: str, epilog: str) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", epilog=epilog,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        c.set_defaults(run=run, parser=c)
        return c

    c = command("convert", convert, "convert a file, a folder, or raw PCM on standard input", CONVERT)
    c.add_argument("source", metavar="SOURCE",
                   help="audio file (wav, flac, ogg, opus, mp3), folder, or - for raw 16-bit PCM on stdin")  # fmt: skip
    c.add_argument("-o", "--out", metavar="OUT",
                   help="audio file or folder; default <stem>.<voice>.wav beside the source, stdout for -")  # fmt: skip
    c.add_argument("--voice", required=True, metavar="VOICE", help="embedded name, .voice file or recording")
    c.add_argument("--seed", type=int, default=0, help="of all randomness (default 0)")
    c.add_argument("--guidance", type=float, metavar="G",
                   help="0 to 5: more likeness to the voice, less clear words (default: 1.5)")
    c.add_argument("--temperature", type=float, metavar="T",
                   help="of sampling; 0 always takes the likeliest (default: as tuned)")  # fmt: skip
    c.add_argument("--delay", type=int, default=1, metavar="FRAMES",
                   help="let the model look this many frames of 20 ms further ahead (default 1)")  # fmt: skip
    c.add_argument("--transpose", type=float, default=0.0, metavar="SEMITONES",
                   help="shift the output's pitch from the target's register (default 0)")  # fmt: skip
    c.add_argument("--chunk", type=duration, metavar="40ms",
                   help="audio taken at a time; the result is the same (default 40ms from stdin, else 1s)")  # fmt: skip
    c.add_argument("--source-pitch", type=source_pitch, default="auto", metavar="auto|live|HZ",
                   help="mean pitch of the source: heard beforehand (auto; files), learnt on the way (live; "
                        "always so from stdin), or given")  # fmt: skip
    c.add_argument("--threads", type=positive, default=1, help="CPU threads (default 1)")
    c.add_argument("--overwrite", action="store_true", help="in a folder, convert again what is finished")
    c.add_argument("--rate", type=positive, metavar="HZ", help="of stdin and stdout (default 16000)")
    c.add_argument("--channels", type=positive, metavar="N", help="channels on stdin (default 1); stdout is mono")
    model_option(c)

    c = command("enroll", enroll, "make a voice file from a recording of 3 to 10 s of clean speech", ENROLL)
    c.add_argument("recording", metavar="RECORDING", help="audio file")
    c.add_argument("-o", "--out", required=True, metavar="X.voice", help="voice file to write")
    c.add_argument("--name", help="of the voice (default: the recording's file name)")
    c.add_argument("--licence", default="", help="under which the voice may be used")
    c.add_argument("--consent", default="", help="who agreed to this use of the voice, when and how")
    c.add_argument("--note", default="", help="anything else")
    model_option(c)

    c = command("voices", voices, "list the embedded voices", VOICES)
    c.add_argument("--json", action="store_true", help="for programs")
    model_option(c)

    c = command("prepare", prepare, "pack a corpus for training", PREPARE)
    c.add_argument("source", metavar="CORPUS", help="folder (or a recipe's YAML, which names it)")
    c.add_argument("-o", "--out", metavar="PACK", help="folder to write")
    overrides_argument(c)

    c = command("tokenize", tokenize, "turn audio into shards of units and codes", TOKENIZE)
    c.add_argument("source", metavar="SOURCE", help="corpus or pack (or a recipe's YAML, which names it)")
    c.add_argument("-o", "--out", metavar="OUT", help="folder to write")
    overrides_argument(c)
    model_option(c)

    c = command("train", train, "train a stage, or all of them", TRAIN)
    c.add_argument("stage", choices=TRAIN_STAGES, help="one of %(choices)s")
    c.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file or name")
    overrides_argument(c)
    return p


def model_option(c: argparse.ArgumentParser) -> None:
    c.add_argument("--model", metavar="DIR", help="model folder or hub id (default: the embedded one)")


def overrides_argument(c: argparse.ArgumentParser) -> None:
    c.add_argument("overrides", metavar="key=value", nargs="*", help="settings; a.b=value reaches inside")


def duration(text: str) -> float:
    """`40ms` or `0.5s` -> seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text.strip())
    seconds = float(found[1]) / (1000.0 if found[2] == "ms" else 1.0) if found else 0.0
    if not 0.001 <= seconds <= 600.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a duration such as 40ms or 0.5s, 1ms to 600s")
    return seconds


def source_pitch(text: str) -> str | float:
    """`auto`, `live` or a number of Hz."""
    try:
        return text if text in ("auto", "live") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, live or a number of Hz") from None


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


# ---- commands -----------------------------------------------------------------------------------------


def convert(args: argparse.Namespace) -> int:
    raw = args.source == "-"
    if not raw and (args.rate or args.channels):
        args.parser.error("--rate and --channels describe raw PCM on standard input; a file says its own")
    if not raw and not Path(args.source).exists():
        raise VivavoceError(f"{args.source}: no such file or folder")
    if raw and (sys.stdin.isatty() or (args.out in (None, "-") and sys.stdout.isatty())):
        raise VivavoceError("raw PCM does not go with a terminal; pipe it in and out, or name a file with -o")


    from vivavoce.changer import load
    from vivavoce.convert import Job, convert_path, convert_pcm
    from vivavoce.engine import Settings

    pitch = args.source_pitch if isinstance(args.source_pitch, float) else None
    given = {k: v for k in ("temperature", "guidance") if (v := getattr(args, k)) is not None}
    settings = Settings(args.seed, delay=args.delay, transpose=args.transpose, source_register=pitch, **given)
    changer = load(args.model, threads=args.threads)
    voice = changer.voice(args.voice)
    keep = () if args.voice in changer.voices else (Path(args.voice),)
    seconds = args.chunk or (0.04 if raw else 1.0)
    job = Job(changer, voice, settings, seconds, args.source_pitch == "auto", keep)
    out = None if args.out is None or (raw and args.out == "-") else Path(args.out)
    if raw:
        rate, channels = args.rate or 16000, args.channels or 1
        tally = convert_pcm(job, sys.stdin.buffer, out or sys.stdout.buffer, rate, channels)
    else:
        tally = convert_path(job, Path(args.source), out, args.overwrite)
    print(f"vivavoce: {tally}", file=sys.stderr)
    return 1 if tally.failed else 0


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


def prepare(args: argparse.Namespace) -> int:
    if args.source.endswith((".yaml", ".yml")):
        print(run_recipe("prepare", args.source, [*out_override(args), *args.overrides]))
        return 0
    if not args.out:
        args.parser.error("-o PACK is needed: the folder to write")
    print(run_recipe("prepare", None, [f"corpus={quoted(args.source)}", *out_override(args), *args.overrides]))
    return 0


def tokenize(args: argparse.Namespace) -> int:
    if args.source.endswith((".yaml", ".yml")):
        report(run_recipe("tokenise", args.source, [*out_override(args), *args.overrides]))
        return 0
    if not args.out:
        args.parser.error("-o OUT is needed: the folder to write")

    from vivavoce.changer import model_folder

    folder = model_folder(args.model)
    pack = Path(args.source)
    if not (pack / "pack.json").is_file():
        pack = Path(args.out) / "pack"
        run_recipe("prepare", None, [f"corpus={quoted(args.source)}", f"out={quoted(pack)}"])
    own = [f"pack={quoted(pack)}", f"codec={quoted(folder / 'codec')}", f"units={quoted(folder / 'units')}"]
    report(run_recipe("tokenise", None, [*own, *out_override(args), *args.overrides]))
    return 0


def train(args: argparse.Namespace) -> int:
    config, overrides = args.config, args.overrides
    if config is not None and "=" in config and not Path(config).exists():
        config, overrides = None, [config, *overrides]
    report(run_recipe(args.stage, config or args.stage, overrides))
    return 0


def out_override(args: argparse.Namespace) -> list[str]:
    return [f"out={quoted(args.out)}"] if args.out else []


def quoted(path: str | Path) -> str:
    """A path as a YAML string, whatever characters it holds."""
    import json

    return json.dumps(str(path), ensure_ascii=False)


def run_recipe(stage: str, config: str | None, overrides: list[str]) -> Any:
    """Load a recipe's config and run it. Raises ConfigError when the config or a training package lacks."""
    import importlib

    module, cls, function = RECIPES[stage]
    try:
        from vivavoce.core.config import load_config

        recipe = importlib.import_module(f"vivavoce.recipes.{module}")
        path = None if config is None else config_path(config, stage)
        return getattr(recipe, function)(load_config(getattr(recipe, cls), path, overrides))
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] not in TRAINING_PACKAGES:
            raise
        raise ConfigError(f'{stage} needs the package {e.name}: pip install "vivavoce[train]"') from None


def config_path(name: str, stage: str) -> Path | None:
    """A YAML file, or one that ships in vivavoce.recipes; None for a stage that ships none and needs none."""
    from importlib import resources

    shipped = Path(str(resources.files("vivavoce.recipes")))
    for path in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    if name == stage:
        return None
    known = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
    raise ConfigError(f"{name}: no such config file; those that ship with vivavoce: {known}")


def report(result: Any) -> None:
    """Print what a recipe returned: a folder, or numbers by name."""
    if isinstance(result, dict):
        result = "  ".join(f"{k} {v:.4g}" for k, v in result.items())
    print(result)


# ---- entry --------------------------------------------------------------------------------------------


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
