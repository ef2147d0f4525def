"""`vivavoce prepare`, `tokenize` and `train`: the recipes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vivavoce.cli.common import Commands, command, model_option, overrides_argument
from vivavoce.core.errors import ConfigError

TRAINING_PACKAGES = {"accelerate", "datasets", "pyarrow", "sklearn", "swift_f0", "tensorboard"}
RECIPES = {  # stage -> module of vivavoce.recipes, its config, its function
    "codec": ("train_codec", "CodecRecipe", "run"),
    "units": ("train_units", "UnitsRecipe", "run"),
    "lm": ("train_lm", "LMRecipe", "run"),
    "joint": ("train_joint", "JointRecipe", "run"),
    "critics": ("train_critics", "CriticRecipe", "run"),
    "decoder": ("train_decoder", "DecoderRecipe", "run"),
    "tagger": ("train_tagger", "TaggerRecipe", "run"),
    "emotion": ("train_emotion", "EmotionRecipe", "run"),
    "probe": ("probe", "ProbeConfig", "run"),
    "default": ("default", "DefaultRecipe", "run"),
    "prepare": ("corpus", "PrepareConfig", "prepare"),
    "tokenise": ("tokenise", "TokeniseConfig", "run"),
    "label": ("label", "LabelConfig", "run"),
    "kmeans": ("kmeans", "KmeansConfig", "run"),
    "distil": ("distil", "DistilConfig", "run"),
    "unit_bpe": ("unit_bpe", "UnitBPERecipe", "run"),
    "pairs": ("pairs", "PairsConfig", "run"),
    "translate": ("train_translate", "TranslateRecipe", "run"),
    "idea": ("idea", "IdeaRecipe", "run"),
}
TRAIN_STAGES = ("codec", "units", "lm", "critics", "joint", "decoder", "default", "tagger", "emotion", "label",
                "kmeans", "distil", "unit_bpe", "pairs", "translate", "idea", "probe")  # fmt: skip

PREPARE = """\
CORPUS is a manifest (a line a clip: id, path, speaker, licence, split ...; clips loose or in tar shards), a folder
with a manifest.jsonl, one with a dataset.json (`vivavoce corpus` makes both), or any folder of recordings, a
sub-folder a speaker. An interrupted run goes on where it stopped.

examples:
  vivavoce prepare recordings/ -o runs/pack
  vivavoce prepare corpus/ -o runs/pack teacher=labels.npz workers=8
  vivavoce prepare recipes/prepare.yaml corpus=corpus/ out=runs/pack
"""
TOKENIZE = """\
SOURCE is a corpus (see `vivavoce prepare`; it is packed into OUT/pack first) or a pack; a corpus with a dataset.json
(see `vivavoce corpus datasets`) is streamed and need not fit on the disk. The shards are Parquet:
`datasets.load_dataset("parquet", data_dir=OUT)` reads them. An interrupted run goes on where it stopped.

examples:
  vivavoce tokenize corpus/ -o units/
  vivavoce tokenize runs/pack -o runs/tokens --model runs/default views=4 precision=bf16
  vivavoce tokenize runs/pack -o runs/tokens units=runs/hubert           with HuBERT's units; see docs/hubert.md
  accelerate launch --num_processes 4 --max_restarts 3 -m vivavoce tokenize runs/pack -o runs/tokens
  vivavoce tokenize recipes/tokenise.yaml pack=runs/pack out=runs/tokens
"""
TRAIN = """\
CONFIG is a YAML file, or the bare name of one that ships with vivavoce; without it, the stage's own. Its header
says what the stage needs and how long it takes. A run that was stopped goes on from its last checkpoint.

examples:
  vivavoce train default corpus=corpus/ out=runs/mine            corpus to model folder, all stages
  vivavoce train codec recipes/codec.yaml pack=runs/pack train.out=runs/codec
  vivavoce train lm lm tokens=runs/tokens train.budget_minutes=60
  vivavoce train kmeans corpus=runs/pack checkpoint=facebook/hubert-base-ls960 out=runs/hubert
  accelerate launch --num_processes 4 -m vivavoce train codec my.yaml
"""


def add(commands: Commands) -> None:
    c = command(commands, "prepare", prepare, "pack a corpus for training", PREPARE)
    c.add_argument("source", metavar="CORPUS", help="folder (or a recipe's YAML, which names it)")
    c.add_argument("-o", "--out", metavar="PACK", help="folder to write")
    overrides_argument(c)

    c = command(commands, "tokenize", tokenize, "turn audio into shards of units and codes", TOKENIZE)
    c.add_argument("source", metavar="SOURCE", help="corpus or pack (or a recipe's YAML, which names it)")
    c.add_argument("-o", "--out", metavar="OUT", help="folder to write")
    overrides_argument(c)
    model_option(c)

    c = command(commands, "train", train, "train a stage, or all of them", TRAIN)
    c.add_argument("stage", metavar="STAGE", choices=TRAIN_STAGES, help="one of %(choices)s")
    c.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file or name")
    overrides_argument(c)


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
    if not (pack / "pack.json").is_file() and not (pack / "dataset.json").is_file():
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
    _leave_the_others()
    return 0


def _leave_the_others() -> None:
    """Close the connection to the other processes of `accelerate launch`: its threads, cut off at exit, abort."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
