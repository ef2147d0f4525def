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

from vivavoce.cli import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, flags=re.S)


def lines(text: str) -> list[str]:
    """Shell commands of a document: continued lines joined, remarks left out."""
    found = re.findall(r"```console\n(.*?)```", text, flags=re.S)
    return [re.split(r"\s{2,}#", line)[0].strip() for block in found
            for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip


def commands() -> list[str]:
    """Those of the README that run here, on the files of `desk`."""
    pattern = r"vivavoce (convert|voices|enroll|bench|corpus --list|report recordings/ )|cat "
    return [line for line in lines(README) if re.match(pattern, line) and "runs/mine" not in line]


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
    some = commands()
    assert len(some) >= 9
    program = f"{shlex.quote(sys.executable)} -m vivavoce"
    for line in sorted(some, key=lambda line: ".voice" in line and "enroll" not in line):
        line = re.sub(r"(^|\| )vivavoce ", rf"\g<1>{program} ", line)
        done = subprocess.run(line, shell=True, cwd=desk, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert (desk / "converted" / "a.wav").exists() and (desk / "someone.voice").exists()
    assert len((desk / "out.pcm").read_bytes()) == len((desk / "in.pcm").read_bytes())
    assert (desk / "report" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_every_command_of_the_docs_is_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and stages that a document names exist, and recipes that it names lie where it says."""
    monkeypatch.chdir(ROOT)
    for line in lines(path.read_text(encoding="utf-8")):
        at = re.search(r"(?:^|[|&] |-m )vivavoce (.*?)(?:$| [|>&])", line)
        if not at or at[1].startswith("COMMAND") or at[1] == "--help":
            continue
        words = shlex.split(at[1])
        _, rest = parser().parse_known_args(words)
        assert all("=" in w and not w.startswith("-") for w in rest), f"{path.name}: {line}: {rest}"
        for word in words:
            assert not word.startswith("recipes/") or (ROOT / word).is_file(), f"{path.name}: {line}: {word}"
