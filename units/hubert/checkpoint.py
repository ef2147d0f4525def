"""Speech models as the hub writes them: what a checkpoint's folder says, its tensors, and an import of pickled ones.

    python -m vivavoce.units.hubert.checkpoint HUB_ID_OR_FOLDER OUT

The import reads `pytorch_model.bin` (weights only: no code in it is run) and writes safetensors. Nothing else here
reads a pickle.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vivavoce.core.checkpoint import load_tensors, read_json, resolve_folder, save_tensors, write_json
from vivavoce.core.errors import CheckpointError, VivavoceError

KINDS = {"hubert": "HubertModel", "wav2vec2": "Wav2Vec2Model", "wavlm": "WavLMModel"}  # model_type -> transformers
PICKLED = "pytorch_model.bin"


@dataclass(frozen=True)
class Checkpoint:
    """A local folder in the hub's format: `config.json`, safetensors, perhaps `preprocessor_config.json`.

    Attributes:
        name: as given: a folder or hub id.
        config: what its config.json says.
        normalise: whether the model hears waveforms of zero mean and unit variance.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    normalise: bool

    @classmethod
    def open(cls, name: str | Path, sample_rate: int, hop: int) -> Checkpoint:
        """Find a folder, or fetch a hub id, and read what it says of itself.

        Raises:
            CheckpointError: not to be had, another kind of model, pickled weights, or a grid other than
                `sample_rate` Hz and `hop` samples.
        """
        folder = resolve_folder(name)
        config = read_json(folder / "config.json")
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind not in KINDS:
            raise CheckpointError(f"{name}: holds a {kind!r} model; units are made with {', '.join(KINDS)}")
        group = config.get("feat_extract_norm", "group") == "group"
        heard, normalise = 16000, not group  # what fairseq's own recipes say, where no extractor is described
        if (folder / "preprocessor_config.json").is_file():
            extractor = read_json(folder / "preprocessor_config.json")
            heard, normalise = extractor.get("sampling_rate", 16000), extractor.get("do_normalize", True)
        found = cls(str(name), folder, config, bool(normalise))
        if (heard, found.hop) != (sample_rate, hop):
            raise CheckpointError(f"{name}: hears {heard} Hz in frames of {found.hop} samples; "
                                  f"units need {sample_rate} Hz and {hop}")
        if not found.files:
            pickled = resolve_folder(name) / PICKLED
            mend = f"`python -m vivavoce.units.hubert.checkpoint {name} OUT` reads {PICKLED}"
            missing = "has pickled weights only" if pickled.is_file() else "holds no model.safetensors"
            raise CheckpointError(f"{name}: {missing}; {mend} without running code in it and writes one")
        return found

    @property
    def kind(self) -> str:
        """`hubert`, `wav2vec2` or `wavlm`."""
        return str(self.config["model_type"])

    @property
    def layers(self) -> int:
        """Transformer layers; hidden states are numbered 0 (before the first) to this."""
        return int(self.config.get("num_hidden_layers", 12))

    @property
    def stack(self) -> list[tuple[int, int]]:
        """Kernel and stride of each convolution from samples to frames."""
        kernels = self.config.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2])
        return list(zip(kernels, self.config.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])))

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        n = 1
        for _, stride in self.stack:
            n *= stride
        return n

    @property
    def reach(self) -> int:
        """Samples that one frame of the convolutions is made from: 400 for all of the family so far."""
        n = 1
        for kernel, stride in reversed(self.stack):
            n = (n - 1) * stride + kernel
        return n

    @property
    def files(self) -> list[Path]:
        """Its safetensors files."""
        return sorted(self.folder.glob("model*.safetensors"))

    @cached_property
    def sha256(self) -> str:
        """Of config and weights: what units that were fitted on this checkpoint hold to."""
        digest = hashlib.sha256()
        for path in (self.folder / "config.json", *self.files):
            with open(path, "rb") as f:
                while block := f.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the bare model, without the `hubert.` that a model with a head puts before them."""
        for path in self.files:
            for name, tensor in load_tensors(path)[0].items():
                yield name.removeprefix(f"{self.kind}."), tensor


def import_checkpoint(source: str | Path, out: str | Path) -> Path:
    """Copy a checkpoint whose weights are pickled, as safetensors.

    Raises:
        CheckpointError: nothing pickled there, or a pickle that holds more than tensors (it is not run).
    """
    folder, out = Path(source), Path(out)
    if not folder.is_dir():
        folder = _fetch(str(source))
    path = folder / PICKLED
    if not path.is_file():
        raise CheckpointError(f"{source}: holds no {PICKLED} to import")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a damaged or hostile file may raise
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise CheckpointError(f"{path}: refused, it is damaged or holds more than tensors ({reason})") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path}: refused, it holds more than named tensors")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", read_json(folder / "config.json"))
    if (folder / "preprocessor_config.json").is_file():
        shutil.copyfile(folder / "preprocessor_config.json", out / "preprocessor_config.json")
    save_tensors(out / "model.safetensors", {k: t.clone() for k, t in tensors.items()}, {"format": "pt"})
    return out


def _fetch(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", PICKLED]))
    except Exception as e:
        raise CheckpointError(f"{name}: neither a folder nor a reachable hub model ({type(e).__name__})") from None


def main(argv: list[str]) -> int:
    """The command in the module's head."""
    if len(argv) != 2:
        print("usage: python -m vivavoce.units.hubert.checkpoint HUB_ID_OR_FOLDER OUT", file=sys.stderr)
        return 2
    try:
        print(import_checkpoint(*argv))
    except VivavoceError as e:
        print(f"vivavoce: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
