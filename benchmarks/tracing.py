"""What TorchScript traces of a frame save, stage by stage: alternating runs in one process.

    python benchmarks/tracing.py [--seconds 20] [--precision int8]
"""

from __future__ import annotations

import argparse
import contextlib

import numpy as np
import torch

import vivavoce
from vivavoce.bench import STAGES, measure
from vivavoce.core.traced import eager


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--precision", default="int8")
    args = parser.parse_args()
    changer = vivavoce.load(precision=args.precision)
    x = 0.1 * torch.randn(16000 * 10, generator=torch.Generator().manual_seed(0))
    rows: dict[str, list[list[float]]] = {"eager": [], "traced": []}
    for _ in range(3):
        for name, context in (("eager", eager()), ("traced", contextlib.nullcontext())):
            with context:
                m = measure(changer, next(iter(changer.voices)), x, 16000, 0.04, args.seconds / 3)
            rows[name].append([m.factor, m.p50, m.p95, m.p99, *(m.stages[s] for s in STAGES)])
    print(f"{'':8}" + "".join(f"{k:>11}" for k in ("RTF", "p50 ms", "p95 ms", "p99 ms", *STAGES)))
    middle = {k: np.median(v, axis=0) for k, v in rows.items()}
    for name, v in {**middle, "ratio": middle["eager"] / np.maximum(middle["traced"], 1e-9)}.items():
        print(f"{name:8}" + "".join(f"{n:11.3f}" for n in v))


if __name__ == "__main__":
    main()
