"""`vivavoce import`: models of other projects become folders of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from vivavoce.cli.common import Commands, command
from vivavoce.core.errors import VivavoceError

EXAMPLES = """\
Only tensors are read: a checkpoint that holds code is refused. OUT then holds config.json and model.safetensors.

kinds:
  encodec   CHECKPOINT is an original checkpoint (.th), or the hub's folder or id (transformers' EncodecModel).
            --bandwidth 6 keeps the codebooks of up to 6 kbit/s only: what a language model writes is no more.

examples:
  vivavoce import encodec encodec_24khz-d7cc33bc.th -o models/encodec_24khz
  vivavoce import encodec facebook/encodec_24khz -o models/encodec_24khz --bandwidth 6
"""


def add(commands: Commands) -> None:
    c = command(commands, "import", run, "take over a model of another project", EXAMPLES)
    c.add_argument("kind", choices=sorted(KINDS), metavar="KIND", help=f"one of {', '.join(sorted(KINDS))}")
    c.add_argument("checkpoint", metavar="CHECKPOINT", help="file, folder or hub id")
    c.add_argument("-o", "--out", metavar="OUT", required=True, help="folder to write")
    c.add_argument("--bandwidth", type=float, metavar="KBPS", help="encodec: the highest to keep, in kbit/s")


def run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if (out / "config.json").exists():
        raise VivavoceError(f"{out}: holds a model already; choose another folder with -o or remove it")
    print(f"{out}: {KINDS[args.kind](args, out)}")
    return 0


def encodec(args: argparse.Namespace, out: Path) -> str:
    """Import an EnCodec checkpoint; says in a line what it is."""
    from vivavoce.codec.encodec.weights import open_encodec

    model = open_encodec(args.checkpoint)
    if args.bandwidth is not None:
        model.keep(model.config.codebooks(args.bandwidth))
    model.save_pretrained(out)
    c = model.config
    return (f"EnCodec, {c.sample_rate / 1000:g} kHz, {c.channels} channel{'s' * (c.channels > 1)}, {c.n_codebooks} "
            f"codebooks, {'streams' if c.causal else 'offline only'}")  # fmt: skip


KINDS = {"encodec": encodec}
