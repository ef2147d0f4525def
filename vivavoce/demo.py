"""`make demo`: converts the shipped samples (or the files given) with the embedded default and measures the result.

    python -m vivavoce.demo [FILE ...] [-o OUT] [--voices bruno,chiara]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
COLUMNS = {"sim_target": "to target", "sim_source": "to source", "margin": "margin", "f0_corr": "F0 corr",
           "energy_corr": "energy corr", "per": "phoneme err", "event_kept": "laugh kept"}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Convert, measure, print. Returns 0 when the outputs are, on the mean, nearer to target than to source."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*", type=Path, help="recordings to convert (default: the shipped samples)")
    p.add_argument("-o", "--out", type=Path, default=Path("out/demo"))
    p.add_argument("--voices", default="bruno,chiara", help="embedded voices, comma-separated")
    a = p.parse_args(argv)

    from vivavoce.changer import load
    from vivavoce.core.audio import save
    from vivavoce.core.cores import cores
    from vivavoce.core.errors import VivavoceError
    from vivavoce.eval.measure import Pair, measure
    from vivavoce.eval.plots import draw

    files = a.files or sorted(SAMPLES.glob("*.flac"))
    if not files:
        print(f"no samples in {SAMPLES}; give recordings: python -m vivavoce.demo FILE ...", file=sys.stderr)
        return 1
    a.out.mkdir(parents=True, exist_ok=True)
    try:
        changer, pairs, spent, audio = load(threads=min(2, cores())), [], 0.0, 0.0
        for name in a.voices.split(","):
            reference = a.out / f"voice-{name}.wav"
            save(reference, *changer.preview(name))
            for source in files:
                began = time.perf_counter()
                y, rate = changer.convert(source, name)
                spent, audio = spent + time.perf_counter() - began, audio + len(y) / rate
                path = a.out / f"{source.stem}.{name}.wav"
                save(path, y, rate)
                draw(source, path, path.with_suffix(".png"))
                pairs.append(Pair(path.stem, source, path, reference, {"group": name}))
    except VivavoceError as e:
        print(f"vivavoce: {e}", file=sys.stderr)
        return 1
    measured = measure(pairs, out=a.out)
    print(f"\n{'':34}" + "".join(f"{title:>13}" for title in COLUMNS.values()))
    for row in measured.rows:
        cells = [row.get(k, float("nan")) for k in COLUMNS]
        print(f"{row['id']:34}" + "".join(f"{v:13.2f}" if v == v else f"{'-':>13}" for v in cells))
    print(
        f"\n{audio:.1f} s of audio in {spent:.1f} s: real-time factor {spent / audio:.2f}.\n"
        "To target, to source: cosine of a speaker judge; margin: their difference, above 0 when the voice changed.\n"
        f"Files, spectrograms (.png) and every number (clips.csv, summary.json): {a.out.resolve()}"
    )
    return 0 if measured.summary["overall"]["margin"]["mean"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
