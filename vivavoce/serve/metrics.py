"""Counters in Prometheus' text format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

BUCKETS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)  # of a chunk's compute time, as a share of the chunk
HELP = {
    "streams_total": "Live streams opened.",
    "refusals_total": "Requests turned away, by error code.",
    "input_seconds_total": "Seconds of audio taken from live streams.",
    "passed_seconds_total": "Seconds of audio given back unconverted, by reason.",
    "late_total": "Times that a live stream fell behind.",
    "conversions_total": "Files converted.",
    "enrolments_total": "Voices enrolled.",
    "worker_restarts_total": "Worker processes that were lost and replaced.",
}


class Metrics:
    """Counters by name and label, one histogram, and gauges that are asked when they are read."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], float] = defaultdict(float)
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._chunks = [0] * (len(BUCKETS) + 1)
        self._chunk_sum = 0.0

    def count(self, name: str, by: float = 1.0, **label: str) -> None:
        """Add to a counter of HELP, with at most one label."""
        key, value = next(iter(label.items()), ("", ""))
        self._counts[name, key, value] += by

    def value(self, name: str) -> float:
        """A counter's sum over its labels."""
        return sum(v for (n, _, _), v in self._counts.items() if n == name)

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        self._gauges[name] = help, read

    def chunk(self, share: float) -> None:
        """One chunk was computed in `share` of its own length."""
        at = next((i for i, edge in enumerate(BUCKETS) if share <= edge), len(BUCKETS))
        self._chunks[at] += 1
        self._chunk_sum += share

    def text(self) -> str:
        """All of it, as `GET /metrics` gives it."""
        lines: list[str] = []
        for name, help in HELP.items():
            lines += [f"# HELP vivavoce_{name} {help}", f"# TYPE vivavoce_{name} counter"]
            rows = [(k, v, n) for (m, k, v), n in sorted(self._counts.items()) if m == name] or [("", "", 0.0)]
            for k, v, n in rows:
                lines.append(f"vivavoce_{name}{{{k}=\"{v}\"}} {n:.10g}" if k else f"vivavoce_{name} {n:.10g}")
        for name, (help, read) in self._gauges.items():
            lines += [f"# HELP vivavoce_{name} {help}", f"# TYPE vivavoce_{name} gauge"]
            lines.append(f"vivavoce_{name} {read():.10g}")
        name = "vivavoce_chunk_compute_ratio"
        lines += [f"# HELP {name} Compute time of a chunk over its length.", f"# TYPE {name} histogram"]
        total = 0
        for edge, n in zip((*map(str, BUCKETS), "+Inf"), self._chunks, strict=True):
            total += n
            lines.append(f'{name}_bucket{{le="{edge}"}} {total}')
        return "\n".join([*lines, f"{name}_sum {self._chunk_sum:.10g}", f"{name}_count {total}", ""])
