"""One training loop for every model: accelerate, wall-clock budget, exact resume, TensorBoard.

A batch is a pure function of (seed, step, process), and PyTorch's generators are re-seeded from the
same key at each step; so a run that stops after k steps and goes on equals one that never stopped.

One process, several (DDP), or a model sharded over them (FSDP): `accelerate launch` decides. Checkpoints are whole
in each case, so a run may go on with another number of processes, or with another of the three.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass
from itertools import chain
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
    from accelerate import Accelerator, DistributedType
    from torch.utils.tensorboard import SummaryWriter

    if config.threads:
        torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    # a sharded model answers only to all processes together: validation and export get a whole one of their own
    sharded = accelerator.distributed_type == DistributedType.FSDP
    trained = copy.deepcopy(task.model) if sharded else task.model
    names = [[n for n, p in trained.named_parameters() if p.requires_grad and (p.ndim > 1) is matrix]
             for matrix in (True, False)]  # fmt: skip
    own = dict(trained.named_parameters())
    groups = [{"params": [own[n] for n in ns], "weight_decay": d} for ns, d in zip(names, (config.weight_decay, 0.0))]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.8, 0.99))
    model, prepared = accelerator.prepare(trained, optimizer)
    del own, groups
    step, minutes = _resume(task.model, model, optimizer, names, out, sharded)
    main = accelerator.is_main_process
    log = SummaryWriter(str(out / "tensorboard"), purge_step=step) if main else None
    bar = tqdm(total=config.steps, initial=step, desc=out.name, unit="step", disable=not main)
    metrics: dict[str, float] = {}
    began, first = time.monotonic(), step
    total_minutes = saved = minutes

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
        norm = _number(accelerator.clip_grad_norm_(model.parameters(), config.grad_clip))
        if math.isfinite(norm):
            prepared.step()
        step += 1
        total_minutes = _agree(accelerator, minutes + (time.monotonic() - began) / 60)
        bar.update()
        if step % 20 == 0 and log is not None:
            named = {"loss": loss, **numbers}
            values = {k: float(v.detach()) for k, v in named.items()}
            bar.set_postfix({k: f"{v:.3f}" for k, v in list(values.items())[:4]}, refresh=False)
            for k, v in {**values, "lr": lr, "grad_norm": norm}.items():
                log.add_scalar(f"train/{k}", v, step)
        if total_minutes - saved > config.save_minutes:
            _save(model, optimizer, names, task.model, out, step, total_minutes, main)
            saved = total_minutes
        if step % config.validate_every == 0 and not finished():
            _refresh(task.model, model, sharded)
            metrics = _validate(task, main, log, out, step)
    _save(model, optimizer, names, task.model, out, step, total_minutes, main)
    _refresh(task.model, model, sharded)
    if main:
        metrics = _validate(task, main, log, out, step)
        task.export(out / "export")
    bar.close()
    if log is not None:
        log.close()
    accelerator.wait_for_everyone()
    return metrics


def _number(norm: Any) -> float:
    """A gradient norm, which under FSDP is spread over the processes too."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _refresh(whole: nn.Module, model: nn.Module, sharded: bool) -> None:
    """Bring the first process' whole model up to date with the sharded one; all processes call it together."""
    if not sharded:
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state:
        whole.load_state_dict(state)


def take_over(model: nn.Module, start: nn.Module, where: str) -> None:
    """Begin with the weights of a trained model. What has another shape (a head for other units, say) starts anew, and
    a line says so.

    Raises:
        ConfigError: nothing fits.
    """
    own, theirs = model.state_dict(), start.state_dict()
    fit = {k: v for k, v in theirs.items() if k in own and own[k].shape == v.shape}
    anew = sorted(set(own) - set(fit))
    if not fit:
        raise ConfigError(f"start_from={where}: none of its weights fits this model")
    model.load_state_dict({**own, **fit})
    if anew:
        tqdm.write(f"{where}: starting anew: {', '.join(anew)}")


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


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, names: list[list[str]], whole: nn.Module, out: Path,
          step: int, minutes: float, main: bool) -> None:  # fmt: skip
    """One safetensors file holds model and optimiser, so that the two can never disagree. Shards are gathered, so all
    processes call this together; the first one writes. `optimizer.I.` is the I-th name of `names`, group by group."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    if not main:
        return
    tensors: dict[str, Any] = {f"model.{k}": v for k, v in weights.items()}
    states: Any = moments["state"]
    for i, name in enumerate(chain(*names)):
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in states.get(name, {}).items()}
    tensors["step"], tensors["minutes"] = torch.tensor(step), torch.tensor(minutes, dtype=torch.float64)
    save_tensors(out / "last.safetensors", tensors)
    write_json(out / "run.json", {"step": step, "minutes": round(minutes, 2), "model": type(whole).__name__})


def _resume(whole: nn.Module, model: nn.Module, optimizer: torch.optim.Optimizer, names: list[list[str]], out: Path,
            sharded: bool) -> tuple[int, float]:  # fmt: skip
    """Load the last checkpoint, if there is one, into both; returns its step and minutes."""
    if not (out / "last.safetensors").is_file():
        return 0, 0.0
    found = read_json(out / "run.json").get("model")
    if found != type(whole).__name__:
        raise ConfigError(f"{out}: holds a run of {found}, not of {type(whole).__name__}; choose another out=")
    tensors, _ = load_tensors(out / "last.safetensors")
    own: dict[str, Any] = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    try:
        load_state(whole, own, str(out / "last.safetensors"))
    except CheckpointError as e:
        raise ConfigError(f"{e}; the model's config has changed, choose another out=") from None
    from torch.distributed.checkpoint import state_dict as shards

    options = shards.StateDictOptions(full_state_dict=True)
    if sharded:
        shards.set_model_state_dict(model, own, options=options)
    flat = list(chain(*names))
    state: dict[str, dict[str, Tensor]] = {}
    for k, v in tensors.items():
        if k.startswith("optimizer."):
            _, i, name = k.split(".", 2)
            state.setdefault(flat[int(i)], {})[name] = v
    if state:
        kept = [{**{k: v for k, v in g.items() if k != "params"}, "params": ns}
                for g, ns in zip(optimizer.param_groups, names)]  # fmt: skip
        moments: Any = {"state": state, "param_groups": kept}
        shards.set_optimizer_state_dict(model, optimizer, moments, options=options)
    return int(tensors["step"]), float(tensors["minutes"])
