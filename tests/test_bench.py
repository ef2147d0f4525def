"""What `vivavoce bench` and `convert --simulate-stream` say is consistent; how fast this machine is does not matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

import vivavoce
from vivavoce.bench import STAGES, machine, measure, stopwatch
from vivavoce.changer import Changer
from vivavoce.cli import main
from vivavoce.core.audio import load, save
from vivavoce.simulate import Lateness, busy, paced

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def changer(folder: Path) -> Changer:
    return vivavoce.load(folder)


def test_measured_adds_up(changer: Changer) -> None:
    done: list[float] = []
    m = measure(changer, "ada", tiny.voiced(0.7, 48000), 48000, 0.04, 1.2, progress=done.append)
    assert m.chunk_ms == 40 and m.seconds == pytest.approx(1.2) == sum(done) and len(done) == 30
    assert 0 < m.p50 <= m.p95 <= m.p99 <= m.worst and 0 <= m.over <= 1 and m.uneven >= 1
    assert sum(m.stages.values()) == pytest.approx(m.factor) and set(m.stages) == set(STAGES)
    assert all(v > 0 for v in m.stages.values()), m.stages
    assert m.total_ms == m.latency.total + m.p95 and m.latency.chunk == 40 and m.latency.resampling > 0
    assert m.memory_mb[0] > 50
    assert machine()["torch"] == torch.__version__ and machine()["cores"] >= 1


def test_the_stopwatch_leaves_nothing_behind(changer: Changer) -> None:
    x, stream = tiny.voiced(0.3), changer.stream("ada")
    want = torch.cat((changer.stream("ada").push(x), torch.zeros(0)))
    with stopwatch(stream) as spent:
        assert torch.equal(stream.push(x), want)
    before = dict(spent)
    changer.stream("bela").push(x)
    assert spent == before
    assert not {"generate", "decode", "forward"} & {*vars(stream.engine.lm), *vars(stream.engine.codec)}


def test_bench_command(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save(tmp_path / "x.wav", tiny.voiced(0.5, 44100), 44100)
    common = ["bench", "--model", str(folder), "--seconds", "0.5s"]
    assert main([*common, "--chunk", "20ms,40ms", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert [r["chunk_ms"] for r in out["results"]] == [20, 40] and out["machine"]["threads"] in (1, 2)
    assert [r["algorithmic_ms"] for r in out["results"]] == [80, 100]
    assert all(r["total_ms"] == pytest.approx(r["algorithmic_ms"] + r["p95"]) for r in out["results"])
    assert main([*common, str(tmp_path / "x.wav"), "--soak", "0.3s", "--delay", "0"]) == 0
    text = capsys.readouterr().out
    for word in ("stream at 44100 Hz", "look-ahead", "compute, p95", "playback buffer", "p99 / chunk", "counting",
                 "over budget", "units", "lm", "codec", "whole chain", "resident memory", "growth"):  # fmt: skip
        assert word in text, word
    for bad in (["--soak", "10"], ["--chunk", "40ms,x"], ["--soak", "25h"]):
        with pytest.raises(SystemExit):
            main(["bench", *bad])


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_lateness_is_counted_and_nothing_dropped(changer: Changer, tmp_path: Path) -> None:
    save(tmp_path / "x.wav", tiny.voiced(1.0), RATE)
    want = torch.cat(list(changer.convert_blocks(tmp_path / "x.wav", "ada", scan=False)))
    clock, late = Clock(), Lateness(0.1, 0.1)
    stream, works = changer.stream("ada", RATE), iter([0.01, 0.01, 0.25, 0.02, *[0.01] * 20])
    push = stream.push

    def work(x: torch.Tensor) -> torch.Tensor:
        clock.now += next(works)
        return push(x)

    stream.push = work  # type: ignore[method-assign]
    y = torch.cat(list(paced(stream, tmp_path / "x.wav", late, clock=clock, sleep=clock.sleep)))
    assert torch.equal(y, want)
    assert late.late == pytest.approx([0.01, 0.01, 0.25, 0.17, 0.08, 0.01, 0.01, 0.01, 0.01, 0.01])
    assert late.underruns == 2 and clock.now == pytest.approx(1.01)
    assert "10 chunks of 100 ms" in str(late) and "worst 250.0 ms" in str(late) and "2 underruns" in str(late)
    quick, clock = Lateness(0.1, 0.1), Clock()
    list(paced(changer.stream("ada", RATE), tmp_path / "x.wav", quick, 4.0, clock, clock.sleep))
    assert clock.now == pytest.approx(0.25)


def test_simulate_command(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save(tmp_path / "x.wav", tiny.voiced(0.6, 22050), 22050)
    common = ["convert", str(tmp_path / "x.wav"), "--model", str(folder), "--voice", "ada"]
    assert main([*common, "-o", str(tmp_path / "plain.wav")]) == 0
    assert main([*common, "-o", str(tmp_path / "live.wav"), "--simulate-stream", "--speed", "50", "--load", "1"]) == 0
    assert "15 chunks of 40 ms" in capsys.readouterr().err
    assert torch.equal(load(tmp_path / "plain.wav")[0], load(tmp_path / "live.wav")[0])
    for bad in (["--load", "1"], ["--simulate-stream", "--speed", "0"]):
        with pytest.raises(SystemExit):
            main([*common, *bad])
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path), "--voice", "ada", "--simulate-stream"])


def test_load_ends_with_its_block() -> None:
    import psutil

    before = set(psutil.Process().children())
    with busy(2):
        others = set(psutil.Process().children()) - before
        assert len(others) == 2
    assert not any(p.is_running() for p in others)
