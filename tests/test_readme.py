"""Every example of the README runs, with the embedded default and the shipped samples."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.S)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if re.match(r"(vivavoce (convert|voices|enroll)|cat )", line)
            and "runs/mine" not in line]  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the files the README speaks of, made from the shipped samples."""
    samples = sorted((ROOT / "samples").glob("*.flac"))
    assert len(samples) >= 2
    laugh = next(p for p in samples if "laugh" in p.name)
    speech = next(p for p in samples if "speech" in p.name)
    (tmp_path / "recordings").mkdir()
    for name, path in {"laughing.wav": laugh, "in.wav": laugh, "someone.wav": speech, "ref.wav": speech,
                       "recordings/a.wav": laugh}.items():  # fmt: skip
        x, rate = soundfile.read(path)
        soundfile.write(tmp_path / name, x, rate)
    (tmp_path / "in.pcm").write_bytes((x[:16000] * 32767).astype("<i2").tobytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples(desk: Path) -> None:
    code = blocks("python")
    assert len(code) >= 2
    for example in code:
        scope = {"microphone_samples": torch.zeros(4800)}
        exec(compile(example, "README.md", "exec"), scope)
    x, rate = soundfile.read("laughing.wav")
    y, rate_out = soundfile.read("out.wav")
    assert (len(y), rate_out) == (len(x), rate)
    assert np.abs(y).max() > 0.01


def test_shell_examples(desk: Path) -> None:
    lines = commands()
    assert len(lines) >= 5
    program = f"{shlex.quote(sys.executable)} -m vivavoce"
    for line in sorted(lines, key=lambda line: ".voice" in line and "enroll" not in line):
        line = re.sub(r"(^|\| )vivavoce ", rf"\g<1>{program} ", line)
        done = subprocess.run(line, shell=True, cwd=desk, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (desk / "converted" / "a.wav").exists() and (desk / "someone.voice").exists()
    assert len((desk / "out.pcm").read_bytes()) == len((desk / "in.pcm").read_bytes())
