"""What each stage of making a model costs here, and what follows for corpora of 10 to 100,000 hours.

    python benchmarks/throughput.py CORPUS [--clips 300] [--steps 12] [--model DIR] [--out FOLDER]

CORPUS is anything that `vivavoce prepare` takes. Each stage runs in this process on one thread, with the sizes of the
embedded default, and is timed in CPU seconds, which other programs on the machine lengthen less than they do the
clock; on a GPU the clock counts. The second table is arithmetic on the first; docs/scaling.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivavoce.changer import model_folder
from vivavoce.codec import Codec
from vivavoce.lm import VoiceLM
from vivavoce.recipes import corpus, tokenise, train_codec, train_lm, train_units
from vivavoce.recipes.tokens import Tokens
from vivavoce.recipes.trainer import TrainConfig
from vivavoce.units import UnitEncoder

GPU = torch.cuda.is_available()
RATE = corpus.RATE


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process (a GPU's: of the clock) and the result."""
    clock = time.perf_counter if GPU else time.process_time
    began = clock()
    result = function()
    if GPU:
        torch.cuda.synchronize()
    return clock() - began, result


def size(folder: Path, pattern: str) -> int:
    return sum(p.stat().st_size for p in folder.glob(pattern) if p.is_file())


def prepare(source: str, out: Path, clips: int) -> dict[str, float]:
    """Decode and resample, then pitch labels, then a pack of the first `clips` clips; seconds an hour of audio."""
    listed = corpus.scan(source)[:clips]
    decode, waves = seconds(lambda: [corpus.read_clip(source, c) for c in listed])
    hours = sum(len(w) for w in waves) / RATE / 3600
    corpus.track_pitch(waves[0], 1)  # loads the tracker
    pitch, _ = seconds(lambda: [corpus.track_pitch(w, len(w) // corpus.HOP) for w in waves])
    corpus.prepare(corpus.PrepareConfig(source, str(out), exclude_licences=[], workers=1, limit=clips))
    return {"hours": hours, "decode": decode / hours, "pitch": pitch / hours, "pack": size(out, "*") / hours}


def tokens(pack: Path, out: Path, model: Path) -> dict[str, float]:
    """Tokenise with two perturbed views, bf16; seconds and bytes an hour of audio."""
    config = tokenise.TokeniseConfig(str(pack), str(model / "codec"), str(model / "units"), str(out), threads=1,
                                     precision="bf16", shard_clips=4096)  # fmt: skip
    spent, done = seconds(lambda: tokenise.run(config))
    for split in Tokens(out).head["shards"]:
        Tokens(out).split(split)  # unpacks
    hours = done["hours"]
    return {"tokenise": spent / hours, "parquet": size(out, "*/*.parquet") / hours,
            "arrow": size(out, ".arrow/**/*.arrow") / hours}  # fmt: skip


def train(task: Any, batch_seconds: float, steps: int) -> dict[str, float]:
    """Forward, backward and AdamW in bf16, batches drawn beforehand; seconds an hour of audio seen."""
    device = torch.device("cuda" if GPU else "cpu")
    model = task.model.to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    draw, batches = seconds(lambda: [task.batch(np.random.default_rng(k)) for k in range(steps + 2)])

    def step(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss, _ = task.loss(model, {k: v.to(device) for k, v in batch.items()})
        optimizer.zero_grad(set_to_none=True)
        loss.float().backward()
        optimizer.step()

    for batch in batches[:2]:
        step(batch)
    spent, _ = seconds(lambda: [step(b) for b in batches[2:]])
    hours = steps * batch_seconds / 3600
    return {"step": spent / steps, "an_hour": spent / hours, "draw": draw / (steps + 2) / (batch_seconds / 3600)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus")
    p.add_argument("--clips", type=int, default=300)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--model", help="model folder (default: the embedded one)")
    p.add_argument("--out", type=Path, help="keep the pack, the tokens and throughput.json here")
    p.add_argument("--passes", type=float, default=3.0, help="how often training sees each hour, at least")
    a = p.parse_args()
    torch.set_num_threads(1)
    model = model_folder(a.model)
    out = a.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    numbers = prepare(a.corpus, out / "pack", a.clips) | tokens(out / "pack", out / "tokens", model)
    run = TrainConfig(str(out / "run"))
    sizes = {n: cls.from_pretrained(model / n).config for n, cls in
             (("codec", Codec), ("units", UnitEncoder), ("lm", VoiceLM))}  # fmt: skip
    recipes: dict[str, Any] = {
        "codec": train_codec.CodecRecipe(str(out / "pack"), run, sizes["codec"], batch_size=16, crop_frames=50),
        "units": train_units.UnitsRecipe(str(out / "pack"), run, sizes["units"], batch_size=16, crop_frames=100),
        "lm": train_lm.LMRecipe(str(out / "tokens"), run, sizes["lm"], batch_size=8, crop_frames=150),
    }
    tasks = {"codec": train_codec.CodecTask, "units": train_units.UnitsTask, "lm": train_lm.LMTask}
    for name, recipe in recipes.items():
        batch_seconds = recipe.batch_size * recipe.crop_frames * corpus.HOP / RATE
        got = train(tasks[name](recipe), batch_seconds, a.steps)
        numbers |= {f"train_{name}": got["an_hour"], f"step_{name}": got["step"], f"draw_{name}": got["draw"]}
    device = torch.cuda.get_device_name() if GPU else "one CPU thread"
    print(table(numbers, device))
    print(outlook(numbers, a.passes))
    (out / "throughput.json").write_text(json.dumps({"device": device, **numbers}, indent=2) + "\n")
    if not a.out:
        shutil.rmtree(out)


def table(n: dict[str, float], device: str) -> str:
    """Measured: seconds and bytes an hour of audio."""
    rows = [f"{n['hours']:.2f} h of audio, {device}", ""]
    rows += ["| stage | s an hour of audio | times real time |", "|---|---|---|"]
    named = {"decode": "prepare: decode, resample", "pitch": "prepare: pitch labels (swift-f0)",
             "tokenise": "tokenise, two views", "train_codec": "train codec, an hour seen",
             "train_units": "train units, an hour seen", "train_lm": "train lm, an hour seen",
             "draw_codec": "draw codec batches", "draw_units": "draw units batches",
             "draw_lm": "draw lm batches"}  # fmt: skip
    rows += [f"| {name} | {n[k]:.1f} | {3600 / n[k]:.0f} |" for k, name in named.items()]
    rows += ["", "| on disk | MB an hour of audio |", "|---|---|"]
    rows += [f"| {name} | {n[k] / 1e6:.2f} |" for k, name in
             (("pack", "pack"), ("parquet", "tokens, Parquet"), ("arrow", "tokens, unpacked"))]  # fmt: skip
    return "\n".join(rows)


def outlook(n: dict[str, float], passes: float) -> str:
    """Arithmetic: device hours and disk of corpora of growing size, `passes` times seen by each training."""
    once = (n["decode"] + n["pitch"] + n["tokenise"]) / 3600
    seen = passes * (n["train_codec"] + n["train_units"] + n["train_lm"]) / 3600
    rows = ["", f"Arithmetic, not measured: hours of this device, {passes:g} passes of each training over the corpus."]
    rows += ["", "| corpus | prepare, tokenise | train | pack | tokens |", "|---|---|---|---|---|"]
    for hours in (10, 100, 1000, 10_000, 100_000):
        pack, held = hours * n["pack"] / 1e9, hours * (n["parquet"] + n["arrow"]) / 1e9
        row = [f"{hours:,} h", f"{hours * once:,.1f} h", f"{hours * seen:,.1f} h", f"{pack:,.1f} GB", f"{held:,.2f} GB"]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
