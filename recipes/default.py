"""From a corpus to a model folder in one command: prepare, codec, units, pitch, tokenise, lm, critics, joint, decoder,
assemble.

Stages that are finished with the same settings are skipped; the others go on where they stopped. Codec and
units are put into the model folder as they ship (fp16) *before* tokenising, so that the language model
learns from the very units and codes that it meets when it runs live; the joint stage, where there is one, replaces
units and language model together, and the decoder stage what the codec makes of the same codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from vivavoce.codec import Codec, EncodecVoice, load_codec
from vivavoce.core.checkpoint import FORMAT_VERSION, PretrainedModule, read_json, write_json
from vivavoce.core.config import from_dict, to_dict
from vivavoce.core.errors import ConfigError, CorpusError
from vivavoce.guidance import steerable
from vivavoce.lm import VoiceLM
from vivavoce.recipes import (
    corpus,
    tokenise,
    train_codec,
    train_critics,
    train_decoder,
    train_joint,
    train_lm,
    train_units,
)
from vivavoce.recipes.embedded_voices import make_crowd
from vivavoce.recipes.speaking import make_speaking
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.units import UnitEncoder

HERE = Path(__file__).parent
RECIPES: dict[str, Any] = {"codec": train_codec, "units": train_units, "pitch": train_units, "lm": train_lm,
                           "critics": train_critics, "joint": train_joint, "decoder": train_decoder}  # fmt: skip
PARTS: dict[str, type[PretrainedModule]] = {"codec": Codec, "units": UnitEncoder, "lm": VoiceLM}


@dataclass
class DefaultRecipe:
    """`vivavoce train default` reads this. Each section holds the fields of its stage's own config, over those of
    the YAML in this folder that it names as its `base`. Paths and whatever stages must agree on are filled in."""

    corpus: str
    out: str  # pack/, runs, tokens/ and, at the end, model/
    prepare: dict = field(default_factory=dict)  # see recipes.corpus.PrepareConfig
    codec: Any = field(default_factory=dict)  # recipes.train_codec.CodecRecipe, or the name of a finished codec
    units: dict = field(default_factory=dict)  # recipes.train_units.UnitsRecipe
    pitch: dict = field(default_factory=dict)  # the same: its pitch tracker alone, further
    tokenise: dict = field(default_factory=dict)  # recipes.tokenise.TokeniseConfig
    lm: dict = field(default_factory=dict)  # recipes.train_lm.LMRecipe
    critics: dict | None = None  # recipes.train_critics.CriticRecipe: who listen to the joint stage; none: without
    joint: dict | None = None  # recipes.train_joint.JointRecipe: units and lm together, further; none: without
    decoder: dict | None = None  # recipes.train_decoder.DecoderRecipe, the codec's alone, further; none: without


@dataclass
class FinishedCodec:
    """A codec that is taken as it is, such as `encodec_24khz`: the first codebooks of it, which the model writes."""

    name: str
    codebooks: int

    def ship(self, model: Path) -> None:
        """Put it into the model folder."""
        codec = load_codec(self.name)
        if isinstance(codec, EncodecVoice):
            codec.model.keep(self.codebooks)
        codec.save_pretrained(model / "codec")


def stages(recipe: DefaultRecipe) -> dict[str, Any]:
    """The config of each stage, in order. Raises ConfigError for a mistake in any of them."""
    out = Path(recipe.out)
    pack, tokens, model = str(out / "pack"), str(out / "tokens"), out / "model"
    shipped = {"codec": str(model / "codec"), "units": str(model / "units")}

    def build(name: str, cls: type, given: dict[str, Any]) -> Any:
        section = getattr(recipe, name) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"{name}: expected a section, got {section!r}")
        section = dict(section)
        base = section.pop("base", None)
        if base and not (HERE / base).is_file():
            raise ConfigError(f"{name}.base: no {base!r} among the recipes")
        start = yaml.safe_load((HERE / base).read_text(encoding="utf-8")) if base else {}
        return from_dict(cls, _merge(_merge(start, given), section), name)

    codec: Any
    if isinstance(recipe.codec, str):
        if recipe.decoder is not None:
            raise ConfigError(f"decoder: trains a codec of ours, and codec is {recipe.codec}; leave it out")
        books = build("lm", train_lm.LMRecipe, {"tokens": tokens, "train": {"out": ""}}).model.n_codebooks
        codec, size = FinishedCodec(recipe.codec, books), load_codec(recipe.codec).config.codebook_size
    else:
        codec = build("codec", train_codec.CodecRecipe, {"pack": pack, "train": {"out": str(out / "codec")}})
        size = codec.model.codebook_size
    units = build("units", train_units.UnitsRecipe, {"pack": pack, "train": {"out": str(out / "units")}})
    further = {"pack": pack, "start_from": str(out / "units" / "export"), "only_pitch": True,
               "train": {"out": str(out / "pitch")}}  # fmt: skip
    agreed = {
        "content_units": units.model.content_units,
        "content_levels": units.model.content_levels,
        "expression_levels": units.model.expression_levels,
        "codebook_size": size,
    }
    lm = {"tokens": tokens, "codec": shipped["codec"], "train": {"out": str(out / "lm")}, "model": agreed}
    listen = {"tokens": tokens, "codec": shipped["codec"], "train": {"out": str(out / "critics")}}
    together: dict[str, Any] = {**lm, "pack": pack, "start_from": str(out / "lm" / "export"), "critics": None,
                                "train": {"out": str(out / "joint")}}  # fmt: skip
    if recipe.joint is not None:  # replaces the shipped units: tokens are of those before
        together["units"] = shipped["units"] = str(out / "pitch" / "export")
    found = {
        "prepare": build("prepare", corpus.PrepareConfig, {"corpus": recipe.corpus, "out": pack}),
        "codec": codec,
        "units": units,
        "pitch": build("pitch", train_units.UnitsRecipe, further),
        "tokenise": build("tokenise", tokenise.TokeniseConfig, {"pack": pack, "out": tokens, **shipped}),
        "lm": build("lm", train_lm.LMRecipe, lm),
    }
    if recipe.critics is not None:
        found["critics"] = build("critics", train_critics.CriticRecipe, listen)
        together["critics"] = str(out / "critics" / "export")
        if not isinstance(recipe.codec, str):  # through our own codec the encoder behind the tokens reads what is said
            together["reader"] = str(out / "pitch" / "export")
    if recipe.joint is not None:
        found["joint"] = build("joint", train_joint.JointRecipe, together)
    if recipe.decoder is not None:
        both = "joint/export/units", "joint/export/lm"
        used = both if recipe.joint is not None else ("pitch/export", "lm/export")
        found["decoder"] = build("decoder", train_decoder.DecoderRecipe, {
            "tokens": tokens, "pack": pack, "codec": shipped["codec"], "units": str(out / used[0]),
            "lm": str(out / used[1]), "train": {"out": str(out / "decoder")}})  # fmt: skip
    return found


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid upon `under`, section by section."""
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def run(recipe: DefaultRecipe) -> Path:
    """Do what is not yet done and return the model folder, which `vivavoce.load` takes.

    Raises:
        ConfigError: a mistake in any section, or a training that `stop_after` ended early.
        CorpusError: see the stages.
    """
    from accelerate import PartialState

    configs, out = stages(recipe), Path(recipe.out)
    state = PartialState(cpu=not torch.cuda.is_available())
    main, record = state.is_main_process, out / "stages.json"
    out.mkdir(parents=True, exist_ok=True)
    finished: dict[str, Any] = read_json(record) if record.is_file() else {}
    worked = False
    state.wait_for_everyone()
    for name, config in configs.items():
        if finished.get(name) == to_dict(config):
            continue
        worked = True
        if main:
            tqdm.write(f"stage {name}")
        finished = {k: v for k, v in finished.items() if list(configs).index(k) < list(configs).index(name)}
        if name == "prepare":
            if main:
                corpus.prepare(config)
        elif name == "tokenise":
            tokenise.run(config)
        elif isinstance(config, FinishedCodec):
            if main:
                config.ship(out / "model")
        else:
            RECIPES[name].run(config)
            _check_complete(name, config.train)
            if main:
                export = Path(config.train.out) / "export"
                parts = {"pitch": {"units": export}, "critics": {}, "decoder": {"codec": export},
                         "joint": {"units": export / "units", "lm": export / "lm"}}  # fmt: skip
                for part, trained in parts.get(name, {name: export}).items():
                    ship(part, trained, out / "model")
        state.wait_for_everyone()
        finished[name] = to_dict(config)
        if main:
            write_json(record, finished)
    if main:
        assemble(out / "model")
        if worked or not (out / "model" / "speaking").is_dir():
            try:
                make_speaking(out / "model", Path(configs["prepare"].out))
            except CorpusError as e:
                tqdm.write(f"{e}; without them, a cry's pitch will be taken for its speaker's register")
        chain = load_codec(out / "model" / "codec"), VoiceLM.from_pretrained(out / "model" / "lm")
        if steerable(*chain) and (worked or not (out / "model" / "crowd.voice").is_file()):
            make_crowd(out / "model", Path(configs["prepare"].out))
    state.wait_for_everyone()
    return out / "model"


def _check_complete(name: str, train: TrainConfig) -> None:
    run = read_json(Path(train.out) / "run.json")
    over = bool(train.budget_minutes) and run["minutes"] >= float(train.budget_minutes or 0) - 0.01
    if run["step"] < train.steps and not over:
        raise ConfigError(f"{name}: stopped at step {run['step']} of {train.steps} by stop_after; "
                          "run the same command again to go on")


def ship(part: str, trained: Path, model: Path) -> None:
    """Copy a trained part into the model folder, weights in fp16."""
    PARTS[part].from_pretrained(trained).save_pretrained(model / part, dtype=torch.float16)


def assemble(model: Path) -> None:
    """Make a model folder of the parts in it. Raises CheckpointError when one is missing."""
    rate, hop = load_codec(model / "codec").hears
    (model / "voices").mkdir(exist_ok=True)
    write_json(model / "config.json", {
        "model_type": "vivavoce", "format_version": FORMAT_VERSION, "sample_rate": rate,
        "hop": hop, "parts": list(PARTS),
    })  # fmt: skip
