"""`vivavoce report`."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vivavoce import __version__
from vivavoce.cli.common import Commands, command, model_option, positive, threads_option
from vivavoce.core.errors import VivavoceError

if TYPE_CHECKING:
    from vivavoce.material import Corpus, Material

FAILED = 3  # exit status where --fail-under does not hold
EXAMPLES = """\
Works on any converter's output: a converted file keeps its source's name. OUT gets report.html (one page, nothing is
fetched), summary.json, summary.md and clips.csv. What judges heard is kept by content, so a report that was stopped
goes on, and a second one is quick. A judge whose package is absent is named, with the line that installs it.

examples:
  folders             vivavoce report recordings/ converted/ -o report/
  with labels and targets
                      vivavoce report recordings/ converted/ -o report/ --manifest labels.jsonl --target voice.wav
  against a rival     vivavoce report recordings/ ours/ -o report/ --compare theirs-report/summary.json
  as a gate in CI     vivavoce report recordings/ converted/ -o report/ --fail-under "f0_corr=0.9,per=0.2"
  convert first       vivavoce report corpus/ -o report/ --run --ladder --split test --limit 24
"""


def add(commands: Commands) -> None:
    c = command(commands, "report", report, "measure what of a performance survived a conversion", EXAMPLES)
    c.add_argument("sources", metavar="SOURCES", help="folder of source recordings, a file, or with --run a corpus")
    c.add_argument("converted", metavar="CONVERTED", nargs="?", help="folder of converted recordings, or a file")
    c.add_argument("-o", "--out", metavar="OUT", required=True, help="folder to write")
    voice = c.add_mutually_exclusive_group()
    voice.add_argument("--target", metavar="FILE", help="a recording of the target voice")
    voice.add_argument("--targets", metavar="REFS", help="folder of recordings of the targets, named as the sources")
    c.add_argument("--manifest", metavar="JSONL", help="a line a source: id, emotion, vocalisation, language ...")
    c.add_argument("--judges", metavar="A,B", help="which are asked (default: all that ship; see docs/report.md)")
    c.add_argument("--name", help="of the system under test (default: the folder's name)")
    c.add_argument("--ladder", action="store_true",
                   help="beside identity and shuffled: codec only, a cascade through text; with --run a live stream")
    c.add_argument("--compare", metavar="JSON", help="summary.json of another system's report, set side by side")
    c.add_argument("--fail-under", metavar="LIMITS",
                   help=f'"f0_corr=0.9,per=0.2": exit with {FAILED} where one does not hold, in its own direction')
    c.add_argument("--chunk-ms", type=float, metavar="MS", help="look for seams at this period: the converter's chunk")
    run = c.add_argument_group("convert first")
    run.add_argument("--run", action="store_true", dest="first", help="SOURCES is a folder or a corpus: convert it")
    run.add_argument("--voice", metavar="V[,V]", help="name, .voice file or recording; several share the clips "
                     "(default: other speakers of a corpus, else the embedded voices)")  # fmt: skip
    model_option(run)  # type: ignore[arg-type]
    run.add_argument("--split", metavar="NAME", help="of the manifest (default: test if there is one; or all)")
    run.add_argument("--limit", type=positive, metavar="N", help="clips of each kind, evenly over speakers")
    run.add_argument("--seed", type=int, default=0, help="of sampling and of every choice (default 0)")
    run.add_argument("--guidance", type=float, metavar="G", help="see vivavoce convert")
    run.add_argument("--fit", type=float, metavar="SHARE", help="see vivavoce convert")
    run.add_argument("--keep", type=float, metavar="SHARE", help="see vivavoce convert")
    run.add_argument("--temperature", type=float, metavar="T", help="see vivavoce convert")
    run.add_argument("--delay", type=int, metavar="FRAMES", help="see vivavoce convert")
    threads_option(run)


def report(args: argparse.Namespace) -> int:
    if args.first == (args.converted is not None):
        args.parser.error("give CONVERTED, or --run to convert SOURCES first" if not args.first else
                          "with --run there is no CONVERTED: it is made")  # fmt: skip

    from vivavoce.eval.measure import DEFAULT_JUDGES
    from vivavoce.eval.report import compare, gate, page, study
    from vivavoce.eval.report.markdown import markdown

    limits = gate.parse(args.fail_under) if args.fail_under else []
    other = study.read(args.compare) if args.compare else None
    out = Path(args.out)
    found = _converted(args, out) if args.first else _given(args, out)
    found.rungs |= {k: v for k, v in study.ends(found.rungs["converted"], args.seed).items() if v}
    judges = [j.strip() for j in args.judges.split(",") if j.strip()] if args.judges else DEFAULT_JUDGES
    name = args.name or (f"vivavoce {__version__}" if args.first else Path(args.converted).resolve().name)
    about = {"command": _command(args), "vivavoce": __version__, **found.run}
    done = study.study(name, found.rungs, out, judges, found.notes, about, args.chunk_ms)
    comparison = compare.compare(done, other, args.seed) if other else None
    verdicts = gate.check(limits, done.summary)
    written = page.write_page(done, out, comparison, verdicts, time.strftime("%-d %B %Y"))
    text = markdown(done)
    page.write_text(out / "summary.md", text)
    print(text, end="")
    for note in found.notes:
        print(f"vivavoce: {note}", file=sys.stderr)
    print(f"vivavoce: {written}, summary.json, summary.md, clips.csv", file=sys.stderr)
    broken = [why for _, _, why in verdicts if why]
    if broken:
        print(f"vivavoce: below the limit: {'; '.join(broken)}", file=sys.stderr)
    return FAILED if broken else 0


def _command(args: argparse.Namespace) -> str:
    """The command again, as far as it differs from the defaults."""
    words = ["vivavoce", "report", *(x for x in (args.sources, args.converted) if x)]
    for action in args.parser._actions:
        value = getattr(args, action.dest, None)
        if action.option_strings and action.dest != "help" and value != action.default:
            words += [action.option_strings[-1], *([] if value is True else [str(value)])]
    return shlex.join(words)


def _given(args: argparse.Namespace, out: Path) -> Material:
    """Pairs that a converter made, ours or another's."""
    from vivavoce.changer import load
    from vivavoce.eval.pairs import pair_files
    from vivavoce.material import Material, add_ladder

    paired = pair_files(args.sources, args.converted, args.target, args.targets, args.manifest)
    found = Material({"converted": paired.pairs})
    for side, names in (("not converted", paired.only_source), ("without a source", paired.only_converted)):
        if names:
            more = ", ..." if len(names) > 5 else ""
            found.notes.append(f"{len(names)} {side}, left out: {', '.join(names[:5])}{more}")
    if args.ladder:
        add_ladder(found, lambda: load(args.model, threads=args.threads), out)
    return found


def _converted(args: argparse.Namespace, out: Path) -> Material:
    """Pairs that this command makes."""
    from vivavoce.changer import load
    from vivavoce.engine import Settings
    from vivavoce.material import convert

    given = {k: v for k in ("guidance", "fit", "keep", "temperature", "delay") if (v := getattr(args, k)) is not None}
    settings = Settings(args.seed, **given)
    voices = [v.strip() for v in args.voice.split(",") if v.strip()] if args.voice else []
    corpus = _corpus(args, out)
    return convert(load(args.model, threads=args.threads), corpus, voices, settings, out, args.limit, args.ladder)


def _corpus(args: argparse.Namespace, out: Path) -> Corpus:
    """A corpus with its manifest, tar shards and all; or a plain folder, with --manifest for its labels."""
    from vivavoce.material import Corpus, folder

    root = Path(args.sources)
    if not (root / "manifest.jsonl").is_file():
        return folder(root, args.manifest, out)
    import torch

    from vivavoce.recipes.corpus import RATE, read_clip, scan

    lines = scan(root)
    splits = {str(c.get("split")) for c in lines if c.get("split")}
    split = args.split or ("test" if "test" in splits else "all")
    lines = [c for c in lines if split == "all" or c.get("split") == split]
    if not lines:
        there = ", ".join(sorted(splits)) or "none"
        raise VivavoceError(f"{root}: no clip of split {split!r}; there are: {there}, all")
    return Corpus(lines, lambda clip: (torch.from_numpy(read_clip(root, clip)), RATE))
