"""The command line on a tiny random model: fixtures of its tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny

from vivavoce.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with the tiny model: (exit status, stdout, stderr)."""

    def go(command: str, *args: object, model: Path | None = model) -> tuple[int, str, str]:
        capsys.readouterr()
        extra = ["--model", str(model)] if model else []
        try:
            status = main([command, *map(str, args), *extra])
        except SystemExit as e:
            status = int(e.code or 0)
        return (status, *capsys.readouterr())

    return go


def sound(path: Path, seconds: float = 0.4, rate: int = 16000, channels: int = 1, **kw: str) -> Path:
    """Write speech-like audio."""
    x = tiny.voiced(seconds, rate).numpy()
    soundfile.write(path, np.stack([x] * channels, axis=1), rate, **kw)
    return path


def says(result: tuple[int, str, str], *words: str) -> None:
    """Exit status 1 and one line with these words."""
    status, out, err = result
    assert status == 1 and out == "", result
    assert err.startswith("vivavoce: ") and err.count("\n") == 1, err
    assert all(w in err for w in words), err
