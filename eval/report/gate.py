"""`--fail-under "laugh_f1=0.8,per=0.2"`: floors and ceilings, each in the direction that its metric has."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vivavoce.core.errors import ConfigError
from vivavoce.eval.catalogue import METRICS, Metric
from vivavoce.eval.report.words import figure


@dataclass(frozen=True)
class Limit:
    """One demand on the system under test: its overall mean must not be worse than `value`."""

    metric: Metric
    value: float

    @property
    def sign(self) -> str:
        return {"higher": "≥", "lower": "≤", "zero": "within ±"}[self.metric.better]

    def broken(self, mean: float | None) -> str | None:
        """What is wrong, or None. What was not measured does not pass."""
        key, better = self.metric.key, self.metric.better
        if mean is None:
            return f"{key} was not measured, wanted {self.sign} {self.value:g}"
        good = {"higher": mean >= self.value, "lower": mean <= self.value, "zero": abs(mean) <= self.value}[better]
        return None if good else f"{key} is {figure(mean)}, wanted {self.sign} {self.value:g}"


def parse(text: str) -> list[Limit]:
    """`key=value,key=value` -> limits. Raises ConfigError: malformed, an unknown key (near ones are named), a
    metric without a good side."""
    limits = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, _, value = (s.strip() for s in part.partition("="))
        if key not in METRICS:
            near = difflib.get_close_matches(key, METRICS, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(METRICS)}"
            raise ConfigError(f"--fail-under: unknown metric {key!r}; {hint}")
        if METRICS[key].better == "none":
            raise ConfigError(f"--fail-under: {key} has no good side, so it cannot be a limit")
        try:
            limits.append(Limit(METRICS[key], float(value)))
        except ValueError:
            raise ConfigError(f"--fail-under: {part!r} is not metric=number, such as f0_corr=0.8") from None
    if not limits:
        raise ConfigError("--fail-under: names no metric; write for instance f0_corr=0.8,per=0.2")
    return limits


def check(limits: Sequence[Limit], summary: dict[str, Any]) -> list[tuple[Limit, float | None, str | None]]:
    """Each limit with the overall mean and what is wrong (None: it holds)."""
    out = []
    for limit in limits:
        mean = summary["overall"].get(limit.metric.key, {}).get("mean")
        out.append((limit, mean, limit.broken(mean)))
    return out
