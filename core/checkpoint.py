"""Models as folders of `config.json` + `model.safetensors`; atomic writes; no pickle anywhere."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vivavoce.core.config import from_dict, to_dict
from vivavoce.core.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
M = TypeVar("M", bound="PretrainedModule")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it on success and vanishes on failure.

    Raises OSError as the file system gives it (no space, no permission).
    """
    path = Path(path)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(fd)
    temp = Path(name)
    try:
        yield temp
        os.chmod(temp, 0o666 & ~_umask())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically. NaN and infinity become null: strict JSON has neither."""
    with atomic_path(path) as temp:
        temp.write_text(json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
                        encoding="utf-8")  # fmt: skip


def finite(data: Any) -> Any:
    """NaN and infinity -> None, all the way down."""
    if isinstance(data, dict):
        return {k: finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [finite(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises CheckpointError naming the file when it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as e:
        raise CheckpointError(f"{path}: cannot be read as JSON ({e})") from None


def save_tensors(
    path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    with atomic_path(path) as temp:
        plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(plain, str(temp), metadata=metadata)


def load_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file and its metadata. Raises CheckpointError when it is missing or foreign."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: missing")
    try:
        with safe_open(str(path), framework="pt") as f:
            meta = f.metadata() or {}
        return load_file(str(path)), meta
    except (SafetensorError, OSError, ValueError) as e:
        raise CheckpointError(f"{path}: not a safetensors file ({e})") from None


class PretrainedModule(nn.Module):
    """An nn.Module with a dataclass config that saves to and loads from a folder or a hub id.

    Subclasses set `model_type` and `Config` and take the config as their only constructor argument.
    """

    model_type: ClassVar[str]
    Config: ClassVar[type]
    config: Any

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`; floating tensors in `dtype` when given."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            k: v.to(dtype) if dtype is not None and v.is_floating_point() else v
            for k, v in self.state_dict().items()
        }
        save_tensors(folder / "model.safetensors", tensors, {"model_type": self.model_type})
        head = {"model_type": self.model_type, "format_version": FORMAT_VERSION}
        write_json(folder / "config.json", {**head, "config": to_dict(self.config)})

    @classmethod
    def from_pretrained(cls: type[M], folder: str | Path) -> M:
        """Load from a folder, or from a hub id where `huggingface_hub` is installed.

        Raises CheckpointError when a file is missing, foreign or does not fit the config.
        """
        folder = resolve_folder(folder)
        head = read_json(folder / "config.json")
        if not isinstance(head, dict) or head.get("model_type") != cls.model_type:
            found = head.get("model_type") if isinstance(head, dict) else None
            raise CheckpointError(f"{folder}: holds {found!r}, expected {cls.model_type!r}")
        if head.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder}: format version {head.get('format_version')}, this release reads {FORMAT_VERSION}"
            )
        try:
            config: Any = from_dict(cls.Config, head.get("config", {}), str(folder / "config.json"))
        except ConfigError as e:
            raise CheckpointError(str(e)) from None
        try:
            model = cls(config)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as e:
            raise CheckpointError(f"{folder / 'config.json'}: impossible for {cls.__name__} ({e})") from None
        tensors, _ = load_tensors(folder / "model.safetensors")
        load_state(model, tensors, str(folder / "model.safetensors"))
        return model.eval()


def load_state(model: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """`load_state_dict` (strict, in the model's own dtypes) whose error says what differs."""
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if missing or extra or shapes:
        parts = [f"missing {missing[:3]}"] * bool(missing) + [f"unexpected {extra[:3]}"] * bool(extra)
        parts += [f"{k}: {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}" for k in shapes[:3]]
        raise CheckpointError(f"{where}: does not fit this architecture: {'; '.join(parts)}")
    model.load_state_dict(tensors)


def resolve_folder(name: str | Path) -> Path:
    """A local folder as it is; otherwise a snapshot of the hub repository of that id.

    Raises CheckpointError when neither can be had.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise CheckpointError(f"{name}: no such model folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{name}: no such folder; to fetch a hub id: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.voice"]))
    except Exception as e:
        raise CheckpointError(
            f"{name}: neither a folder nor a reachable hub model ({type(e).__name__})"
        ) from None
