"""One training loop for every model: accelerate, wall-clock budget, exact resume, TensorBoard.

A batch is a pure function of (seed, step, process), and PyTorch's generators are re-seeded from the
same key at each step; so a run that stops after k steps and goes on equals one that never stopped.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from vivavoce.core.checkpoint import load_state, load_tensors, read_json, save_tensors, write_json
from vivavoce.core.errors import CheckpointError, ConfigError


@dataclass
class TrainConfig:
    """How long and how fast to train."""

    out: str  # run folder: checkpoints, logs, export/
    steps: int = 10000
    budget_minutes: float | None = None  # stop (and anneal) by wall clock, counted over resumes
    learning_rate: float = 6e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0
    precision: str = "no"  # accelerate's mixed_precision: no, bf16, fp16
    save_minutes: float = 5.0
    validate_every: int = 1000
    threads: int | None = None  # CPU threads
    stop_after: int | None = None  # stop (resumable) after this many steps of this call


class Task(Protocol):
    """What a recipe gives the trainer."""

    model: nn.Module

    def batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """A batch on the CPU, drawn with `rng` alone."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and named numbers to log; runs `model(**batch)` or the like."""

    def validate(self) -> dict[str, float]:
        """Listening metrics on held-out speakers."""

    def export(self, folder: Path) -> None:
        """Write what `from_pretrained` reads."""


def learning_rate(config: TrainConfig, step: int, minutes: float) -> float:
    """Linear warm-up, then linear decay to zero at the end of the steps or of the budget."""
    progress = step / max(config.steps, 1)
    if config.budget_minutes:
        progress = max(progress, minutes / config.budget_minutes)
    return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1)) * max(0.0, 1.0 - progress)


def fit(task: Task, config: TrainConfig) -> dict[str, float]:
    """Train, resuming from `out` if it holds a run; returns the last validation's numbers.

    Raises:
        ConfigError: a run folder that belongs to another kind of model.
    """
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter

    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    decay = [p for p in task.model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in task.model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.8, 0.99))
    step, minutes = _resume(task.model, optimizer, out)
    model, prepared = accelerator.prepare(task.model, optimizer)
    main = accelerator.is_main_process
    log = SummaryWriter(str(out / "tensorboard"), purge_step=step) if main else None
    bar = tqdm(total=config.steps, initial=step, desc=out.name, unit="step", disable=not main)
    metrics: dict[str, float] = {}
    began, saved, first = time.monotonic(), time.monotonic(), step
    total_minutes = minutes

    def finished() -> bool:
        return step >= config.steps or bool(config.budget_minutes and total_minutes >= config.budget_minutes)

    while not finished() and not (config.stop_after and step - first >= config.stop_after):
        model.train()
        rng = np.random.Generator(np.random.Philox(key=config.seed, counter=[0, 0, accelerator.process_index, step]))
        torch.manual_seed(int(rng.integers(2**62)))
        batch = {k: v.to(accelerator.device) for k, v in task.batch(rng).items()}
        lr = learning_rate(config, step, total_minutes)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with accelerator.autocast():
            loss, numbers = task.loss(model, batch)
            loss = loss.float()
        prepared.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
        if math.isfinite(float(norm)):
            prepared.step()
        step += 1
        total_minutes = _agree(accelerator, minutes + (time.monotonic() - began) / 60)
        bar.update()
        if step % 20 == 0 and log is not None:
            named = {"loss": loss, **numbers}
            values = {k: float(v.detach()) for k, v in named.items()}
            bar.set_postfix({k: f"{v:.3f}" for k, v in list(values.items())[:4]}, refresh=False)
            for k, v in {**values, "lr": lr, "grad_norm": float(norm)}.items():
                log.add_scalar(f"train/{k}", v, step)
        if main and (time.monotonic() - saved > config.save_minutes * 60):
            _save(task.model, optimizer, out, step, total_minutes)
            saved = time.monotonic()
        if step % config.validate_every == 0 and not finished():
            metrics = _validate(task, main, log, out, step)
    if main:
        _save(task.model, optimizer, out, step, total_minutes)
        metrics = _validate(task, main, log, out, step)
        task.export(out / "export")
    bar.close()
    if log is not None:
        log.close()
    accelerator.wait_for_everyone()
    return metrics


def _agree(accelerator: Any, minutes: float) -> float:
    """The first process's clock, so that all anneal and stop at the same step."""
    if accelerator.num_processes == 1:
        return minutes
    clock = torch.tensor(minutes, dtype=torch.float64, device=accelerator.device)
    torch.distributed.broadcast(clock, 0)
    return float(clock)


def _validate(task: Task, main: bool, log: Any, out: Path, step: int) -> dict[str, float]:
    if not main:
        return {}
    task.model.eval()
    with torch.no_grad():
        metrics = task.validate()
    for k, v in metrics.items():
        log.add_scalar(f"valid/{k}", v, step)
    tqdm.write(f"{out.name} step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    with open(out / "validation.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps({"step": step, **metrics}) + "\n")
    return metrics


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, out: Path, step: int, minutes: float) -> None:
    """One safetensors file holds model and optimiser, so that the two can never disagree."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["step"], tensors["minutes"] = torch.tensor(step), torch.tensor(minutes, dtype=torch.float64)
    save_tensors(out / "last.safetensors", tensors)
    write_json(out / "run.json", {"step": step, "minutes": round(minutes, 2), "model": type(model).__name__})


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, out: Path) -> tuple[int, float]:
    if not (out / "last.safetensors").is_file():
        return 0, 0.0
    found = read_json(out / "run.json").get("model")
    if found != type(model).__name__:
        raise ConfigError(f"{out}: holds a run of {found}, not of {type(model).__name__}; choose another out=")
    tensors, _ = load_tensors(out / "last.safetensors")
    own = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        load_state(model, own, str(out / "last.safetensors"))
    except CheckpointError as e:
        raise ConfigError(f"{e}; the model's config has changed, choose another out=") from None
    state: dict[int, dict[str, Tensor]] = {}
    for k, v in tensors.items():
        if k.startswith("optimizer."):
            _, i, name = k.split(".", 2)
            state.setdefault(int(i), {})[name] = v
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(tensors["step"]), float(tensors["minutes"])
