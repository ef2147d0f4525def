"""`vivavoce bench`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vivavoce.cli.common import (
    Commands,
    command,
    duration,
    long_duration,
    model_option,
    positive,
    threads_option,
)

if TYPE_CHECKING:
    from vivavoce.bench import Measured

EXAMPLES = """\
Nothing else should run meanwhile: a program beside it shows in p95 and p99. The devices' own latency is not known
here; `vivavoce live` shows it. Percentiles are of the time to convert one chunk; a fixed piece of counting after each
says how much of p99 is the machine's own. Chunks of several frames of 20 ms cost little more than those of one.

examples:
  the budget              vivavoce bench
  sizes of chunk          vivavoce bench --chunk 20ms,40ms,100ms
  a soak: ten minutes, is it steady, does memory grow
                          vivavoce bench --soak 10m
  the same at the pace of a microphone
                          vivavoce bench --soak 10m --paced
  for a program           vivavoce bench --json
"""


def chunks(text: str) -> list[float]:
    """`20ms,40ms` -> seconds each."""
    return [duration(part) for part in text.split(",")]


def add(commands: Commands) -> None:
    c = command(commands, "bench", bench, "latency budget, real-time factor and memory on this machine", EXAMPLES)
    c.add_argument("file", nargs="?", metavar="FILE", help="recording to convert, over and over (default: made up)")
    c.add_argument("--voice", metavar="VOICE", help="embedded name, .voice file or recording (default: the first)")
    c.add_argument("--chunk", type=chunks, default=[0.04], metavar="20ms,40ms", help="sizes of chunk (default 40ms)")
    c.add_argument("--seconds", type=long_duration, default=30.0, metavar="30s",
                   help="of sound, for each size of chunk (default 30s)")  # fmt: skip
    c.add_argument("--soak", type=long_duration, metavar="10m", help="as long as that instead, with a progress bar")
    c.add_argument("--paced", action="store_true", help="at the pace of a microphone instead of full speed")
    c.add_argument("--rate", type=positive, metavar="HZ", help="of the stream (default: the file's, else the model's)")
    c.add_argument("--buffer", type=duration, metavar="40ms",
                   help="playback buffer to count in (default: as live has it, 40ms)", default=0.04)  # fmt: skip
    c.add_argument("--delay", type=int, metavar="FRAMES", help="see vivavoce convert --help")
    threads_option(c)
    c.add_argument("--precision", choices=("int8", "float32"), default="int8", help="of the weights (default int8)")
    c.add_argument("--json", action="store_true", help="print JSON")
    model_option(c)


def bench(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vivavoce.bench import machine, measure, resident_mb
    from vivavoce.changer import load
    from vivavoce.core.audio import load as load_audio
    from vivavoce.core.errors import VivavoceError
    from vivavoce.engine import Settings

    empty = resident_mb()
    changer = load(args.model, args.precision, args.threads)
    names = [args.voice] if args.voice else list(changer.voices)
    if not names:
        raise VivavoceError("this model brought no voices; name a recording or .voice file with --voice")
    if args.file:
        x, rate = load_audio(args.file, args.rate)
    else:
        rate = args.rate or changer.codec.config.sample_rate
        x = _babble(rate)
    where, seconds = machine(), args.soak or args.seconds
    settings = Settings() if args.delay is None else Settings(delay=args.delay)
    rows = []
    with tqdm(total=round(seconds * len(args.chunk)), unit="s", desc="soak" if args.soak else "bench", disable=None,
              leave=False, file=sys.stderr) as bar:  # fmt: skip
        for chunk in args.chunk:
            rows.append(measure(changer, names[0], x, rate, chunk, seconds, settings, args.paced, bar.update))
    head = {**where, "threads": args.threads, "rate": rate, "precision": args.precision, "paced": args.paced,
            "empty_mb": round(empty, 1)}  # fmt: skip
    if args.json:
        print(json.dumps({"machine": head, "playback_buffer_ms": 1000 * args.buffer, "results": [
            {**asdict(r), "algorithmic_ms": r.latency.total, "total_ms": r.total_ms} for r in rows]}, indent=2))
    else:
        print("\n".join(report(head, rows, 1000 * args.buffer)))
    return 0


def report(head: dict[str, Any], rows: list[Measured], buffer_ms: float) -> list[str]:
    """Lines to print: a column for each size of chunk."""

    def line(name: str, values: list[float], unit: str = "ms", digits: int = 1) -> str:
        return f"  {name:<34}" + "".join(f"{v:>10.{digits}f}" for v in values) + f"  {unit}"

    def each(pick: Any) -> list[float]:
        return [pick(r) for r in rows]

    out = [f"{head['processor']}, {head['cores']} cores, {head['threads']} thread(s), load {head['load_before']}",
           f"torch {head['torch']}, {head['precision']}, stream at {head['rate']} Hz, {rows[0].seconds:.0f} s of sound"
           f"{', paced' if head['paced'] else ''}", "", "latency"]  # fmt: skip
    for item in vars(rows[0].latency):
        out.append(line(item.replace("_", "-"), each(lambda r, item=item: getattr(r.latency, item))))
    out += [line("compute, p95", each(lambda r: r.p95)), line("= to the playback buffer", each(lambda r: r.total_ms)),
            line("playback buffer", [buffer_ms] * len(rows)),
            line("= without the devices", each(lambda r: r.total_ms + buffer_ms)), "", "compute a chunk"]  # fmt: skip
    out += [line(p, each(lambda r, p=p: getattr(r, p))) for p in ("p50", "p95", "p99", "worst")]
    out += [line("p99 / chunk", each(lambda r: r.p99 / r.chunk_ms), "", 2),
            line("p99 / p50", each(lambda r: r.p99 / r.p50), "", 2),
            line("  of counting, on this machine", each(lambda r: r.uneven), "", 2),
            line("chunks over budget", each(lambda r: 100 * r.over), "%", 2), "", "real-time factor"]  # fmt: skip
    out += [line(s, each(lambda r, s=s: r.stages[s]), "", 3) for s in rows[0].stages]
    out += [line("= whole chain", each(lambda r: r.factor), "", 3), "", "resident memory",
            line("before loading", [head["empty_mb"]] * len(rows), "MB"),
            line("after the warm-up", each(lambda r: r.memory_mb[0]), "MB"),
            line("growth", each(lambda r: r.memory_mb[1]), "MB")]  # fmt: skip
    return out


def _babble(rate: int) -> Any:
    """Ten seconds like speech: harmonics that glide, in bursts, with noise and pauses; samples [n]."""
    import math

    import torch

    t = torch.arange(10 * rate, dtype=torch.float64) / rate
    phase = 2 * math.pi * (140 * t + 8 * torch.sin(2 * t))
    tone = torch.stack([torch.sin(k * phase) / k for k in range(1, 20) if k * 160 < 0.45 * rate]).sum(0)
    burst = torch.sin(2 * math.pi * 1.7 * t).clamp_min(0) * (torch.sin(2 * math.pi * 0.3 * t) > -0.7)
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (0.15 * burst * (tone + 0.3 * noise) + 1e-4 * noise).float()
