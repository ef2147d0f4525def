"""`python -m vivavoce.eval SOURCES CONVERTED -o OUT`: what survived a conversion, and what did not."""

from __future__ import annotations

import argparse
import sys

from vivavoce.core.errors import VivavoceError
from vivavoce.eval.judges import JUDGES
from vivavoce.eval.measure import DEFAULT_JUDGES, measure, pair_files, table


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 after one line that says what is wrong."""
    p = argparse.ArgumentParser(prog="python -m vivavoce.eval", description=__doc__)
    p.add_argument("sources", help="folder of source recordings, or one file")
    p.add_argument("converted", help="folder of converted recordings of the same names, or one file")
    p.add_argument("-o", "--out", required=True, help="folder for clips.csv and summary.json")
    voice = p.add_mutually_exclusive_group()
    voice.add_argument("--target", help="a recording of the target voice")
    voice.add_argument("--targets", help="folder of recordings of the target voices, named as the sources")
    p.add_argument("--manifest", help="JSONL with id, emotion, vocalisation of the sources")
    judges = ",".join(DEFAULT_JUDGES)
    p.add_argument("--judges", default=judges, help=f"of {', '.join(JUDGES)} (default: %(default)s)")
    p.add_argument("--baselines", action="store_true", help="measure identity and shuffled sources as well")
    a = p.parse_args(argv)
    try:
        found = pair_files(a.sources, a.converted, a.target, a.targets, a.manifest)
        for name, side in ((found.only_source, "not converted"), (found.only_converted, "without a source")):
            if name:
                more = ", ..." if len(name) > 8 else ""
                print(f"{len(name)} {side}: {', '.join(name[:8])}{more}", file=sys.stderr)
        names = [j.strip() for j in a.judges.split(",") if j.strip()]
        result = measure(found.pairs, names, a.out, a.baselines)
    except VivavoceError as e:
        print(f"vivavoce: {e}", file=sys.stderr)
        return 2
    print(table(result.summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
