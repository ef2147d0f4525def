"""`vivavoce corpus`: from a public corpus on disk to a manifest, and the check of recordings."""

from __future__ import annotations

import argparse

from vivavoce.cli.common import Commands, command, overrides_argument
from vivavoce.core.errors import ConfigError

CORPUS = """\
NAME is a known corpus (--list), `own` for recordings made by the guide in docs/corpora.md, `datasets` for whatever
datasets.load_dataset reads, or `check`, which judges recordings (FOLDER: a corpus or a manifest) and writes nothing.
FOLDER is what its publisher gives out, unpacked. Audio is never copied: the manifest says where it lies. Files that
are missing or corrupt are named, skipped and counted.

examples:
  vivavoce corpus --list
  vivavoce corpus crema_d downloads/CREMA-D -o corpora/crema_d
  vivavoce corpus vctk downloads/VCTK-Corpus-0.92 -o corpora/vctk.jsonl
  vivavoce corpus own recordings/ -o recordings/
  vivavoce corpus check recordings/
  vivavoce corpus datasets my/parquet -o corpora/mine speaker=speaker_id text=sentence language=en licence=CC0-1.0
  cat corpora/*.jsonl > all.jsonl && vivavoce prepare all.jsonl -o runs/pack          corpora are combined like this
"""


def add(commands: Commands) -> None:
    c = command(commands, "corpus", run, "make a manifest of a public corpus, or check recordings", CORPUS)
    c.add_argument("name", metavar="NAME", nargs="?", help="which corpus; see --list")
    c.add_argument("folder", metavar="FOLDER", nargs="?", help="where it lies (datasets: folder or hub name)")
    c.add_argument("-o", "--out", metavar="OUT", help="folder for manifest.jsonl, or a .jsonl file")
    c.add_argument("--splits", choices=("auto", "official", "speaker"), default="auto",
                   help="auto: the official split where it keeps speakers apart, else by speaker")  # fmt: skip
    c.add_argument("--list", action="store_true", help="the known corpora and what they are good for")
    overrides_argument(c)


def run(args: argparse.Namespace) -> int:
    try:
        from vivavoce.recipes import corpora
    except ModuleNotFoundError as e:
        raise ConfigError(f'corpus needs the package {e.name}: pip install "vivavoce[train]"') from None

    if args.list:
        for name, c in corpora.CORPORA.items():
            size = " ".join(x for x in (f"{c.hours:g} h" if c.hours else "", f"{c.speakers} speakers" if c.speakers
                                        else "") if x)  # fmt: skip
            print(f"{name:13}{c.title}: {size + ', ' if size else ''}{c.licence}; {c.use}\n{'':13}from {c.where}")
        return 0
    if not args.name or not args.folder:
        args.parser.error("NAME and FOLDER are needed (or --list)")
    if args.name == "check":
        from vivavoce.recipes.corpora import check

        print(check.report(args.folder))
        return 0
    if not args.out:
        args.parser.error("-o OUT is needed: where the manifest goes")
    settings = dict(x.split("=", 1) for x in args.overrides)
    if args.name == "datasets":
        from vivavoce.recipes.corpora import hub

        print(hub.write_dataset(args.folder, args.out, settings))
        return 0
    if settings:
        args.parser.error(f"{next(iter(settings))}=: only `datasets` takes settings")
    print(corpora.make(args.name, args.folder, args.out, args.splits))
    return 0
