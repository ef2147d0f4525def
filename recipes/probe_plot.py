"""The picture of a probe: what each stream tells, and the map of speaker against emotion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vivavoce.core.checkpoint import atomic_path

TITLES = {"speaker": "speaker (UAR)", "emotion": "emotion, unseen speakers (UAR)",
          "event": "vocal event, unseen speakers (UAR)", "teacher": "teacher's label (share of frames)"}  # fmt: skip
COLOURS = ("#2a6f97", "#e07a1f", "#5a8f3c", "#9b4f96", "#8a8a86")
INK = "#3a3a38"


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """`results`: folder -> stream -> task -> {mean, low, high, chance}. Writes a PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(folder, stream) for folder, r in results.items() for stream in r]
    tasks = [k for k in TITLES if any(k in results[f][s] for f, s in rows)]
    both = {"speaker", "emotion"} <= set(tasks)
    figure = Figure(figsize=(3.1 * (len(tasks) + 1.6 * both), 1.4 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tasks) + both, squeeze=False, width_ratios=[1] * len(tasks) + [1.6] * both)[0]
    colour = dict(zip(results, COLOURS * len(results)))
    for ax, task in zip(axes, tasks):
        for y, (folder, stream) in enumerate(rows):
            v = results[folder][stream].get(task)
            if v is None:
                continue
            ax.barh(y, v["mean"], color=colour[folder], height=0.7)
            ax.plot([v["low"], v["high"]], [y, y], color=INK, linewidth=1.2)
            ax.plot([v["chance"]] * 2, [y - 0.45, y + 0.45], color=INK, linewidth=1.2, linestyle=":")
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1), yticks=range(len(rows)))
        many = len(results) > 1
        ax.set_yticklabels([f"{f}: {s}" if many else s for f, s in rows] if ax is axes[0] else [])
        ax.set_title(TITLES[task], fontsize=9, color=INK, loc="left")
    if both:
        ax = axes[-1]
        for folder, stream in rows:
            who, feel = (results[folder][stream][k] for k in ("speaker", "emotion"))
            ax.errorbar(who["mean"], feel["mean"], fmt="o", color=colour[folder], markersize=4, linewidth=0.8,
                        xerr=[[who["mean"] - who["low"]], [who["high"] - who["mean"]]],
                        yerr=[[feel["mean"] - feel["low"]], [feel["high"] - feel["mean"]]])  # fmt: skip
            ax.annotate(stream, (who["mean"], feel["mean"]), (4, 3), textcoords="offset points", fontsize=7, color=INK)
        ax.set(xlabel="speaker", ylabel="emotion")
        ax.set_title("who against what is felt: left and high is good", fontsize=9, color=INK, loc="left")
    for ax in axes:
        ax.tick_params(labelsize=8, colors=INK, length=2)
        ax.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temp:
        figure.savefig(temp, format="png", dpi=130)
