"""The emotion-preservation report: what of a performance survived a conversion, on one page.

    study.py     rungs of pairs -> judged rows (cached by content) -> summaries
    compare.py   two systems on the same clips: paired intervals of the differences
    gate.py      `--fail-under`
    pick.py      which clips are shown, by a stated rule
    picture.py   spectrogram, melody and events of a source and its conversion, drawn together
    charts.py    profile, distributions, gauges; svg.py below it
    page.py      everything into report.html; markdown.py into summary.md
"""
