"""The mean of the weights of trained models that one training reached from another, or several from the same one.

    python -m vivavoce.recipes.average OUT FOLDER FOLDER [FOLDER ...]

Folders hold units, lm or codec, as `train joint` exports them and model folders do. Models that further training
reached from one another lie in one valley of the loss, and their mean is often better on new speakers than either
(model soups, Wortsman et al. 2022). It costs nothing at run time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vivavoce.core.checkpoint import load_state
from vivavoce.core.errors import ConfigError, VivavoceError
from vivavoce.recipes.default import PARTS


def average(folders: Sequence[Path], out: Path) -> list[str]:
    """Write the mean, weights alike, of each part that the first of `folders` holds into `out`; returns their names.

    Raises:
        ConfigError: fewer than two folders, or the first holds no part.
        CheckpointError: a part is missing in one of the others, or has another shape there.
    """
    if len(folders) < 2:
        raise ConfigError("average: give two folders or more")
    names = [n for n in PARTS if (folders[0] / n / "config.json").is_file()]
    if not names:
        raise ConfigError(f"{folders[0]}: holds none of {', '.join(PARTS)}")
    for name in names:
        first, *others = (PARTS[name].from_pretrained(f / name) for f in folders)
        states = [first.state_dict()]
        for folder, model in zip(folders[1:], others):
            states.append(model.state_dict())
            load_state(PARTS[name](first.config), states[-1], str(folder / name))  # raises where it does not fit
        mean = {k: torch.stack([s[k] for s in states]).mean(0) if v.is_floating_point() else v
                for k, v in states[0].items()}  # fmt: skip
        first.load_state_dict(mean)
        first.save_pretrained(out / name)
    return names


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        print(f"{sys.argv[1]}: {', '.join(average([Path(f) for f in sys.argv[2:]], Path(sys.argv[1])))}")
    except VivavoceError as e:
        sys.exit(f"average: {e}")
