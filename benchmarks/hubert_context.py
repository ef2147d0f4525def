"""Unit agreement with offline against window and look-ahead, as a curve: how much a sliding window loses.

    python benchmarks/hubert_context.py UNITS [FILE ...] [-o out/hubert_context]

UNITS is a unit folder (`vivavoce train kmeans`) or a native encoder's; without files, the shipped samples are heard.
Writes OUT.json and OUT.png. Work: about 2 x windows x frames / EVERY forward passes of one window.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from vivavoce.core.audio import load
from vivavoce.core.checkpoint import write_json
from vivavoce.units import load_units
from vivavoce.units.hubert.context import agreement, whole

SAMPLES = sorted((Path(__file__).parent.parent / "samples").glob("*.flac"))


def main(argv: list[str] | None = None) -> dict:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("units")
    p.add_argument("files", nargs="*", type=Path, default=SAMPLES)
    p.add_argument("-o", "--out", type=Path, default=Path("out/hubert_context"))
    p.add_argument("--windows", type=float, nargs="+", default=[0.4, 0.6, 0.8, 1.0, 1.2, 1.6], help="s")
    p.add_argument("--lookaheads", type=float, nargs="+", default=[0, 40, 80, 160, 320], help="ms")
    p.add_argument("--every", type=int, default=4, help="judge each n-th frame")
    a = p.parse_args(argv)
    units = load_units(a.units)
    rate, hop = units.config.sample_rate, units.config.hop
    windows = [round(s * rate / hop) for s in a.windows]
    lookaheads = [round(ms / 1000 * rate / hop) for ms in a.lookaheads]
    clips = (x[: len(x) // hop * hop] for x in (load(f, rate)[0] for f in tqdm(a.files or SAMPLES, unit="file")))
    shares, chance, judged = agreement(lambda x: whole(units, x), clips, hop, windows, lookaheads, a.every)
    ms = 1000 * hop / rate
    result = {
        "units": a.units, "files": [f.name for f in a.files or SAMPLES], "chance": chance,
        "judged_frames": judged,
        "agreement": [{"window_ms": w * ms, "lookahead_ms": n * ms, "agreement": y}
                      for w, row in shares.items() for n, y in row.items()],
    }  # fmt: skip
    a.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(a.out.with_suffix(".json"), result)
    draw(result, a.out.with_suffix(".png"))
    print(*(f"{r['window_ms']:.0f} ms, look-ahead {r['lookahead_ms']:.0f} ms: {r['agreement']:.3f}"
            for r in result["agreement"]), f"chance: {chance:.3f}; {judged} frames", sep="\n")  # fmt: skip
    return result


def draw(result: dict, path: Path) -> None:
    """A line a look-ahead over windows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for n in sorted({r["lookahead_ms"] for r in result["agreement"]}):
        points = [(r["window_ms"] / 1000, r["agreement"]) for r in result["agreement"] if r["lookahead_ms"] == n]
        axes.plot(*zip(*points), marker="o", label=f"{n:.0f} ms")
    axes.axhline(result["chance"], color="grey", linestyle=":", label="chance")
    axes.set(xlabel="window, s", ylabel="units equal to the whole clip's", ylim=(0, 1.02))
    axes.legend(title="look-ahead", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
