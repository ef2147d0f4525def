"""Common Voice (Ardila et al. 2020): sentences read by volunteers, in more than a hundred languages; MP3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vivavoce.recipes.corpora.common import Clip, Corpus, Problems, gender, table, text_script

SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def read(root: Path, problems: Problems) -> Iterator[Clip]:
    """All validated clips; a speaker of the official dev or test set stays there with all of them."""
    homes = {p.parent for n in ("validated.tsv", "train.tsv") for d in ("", "*/", "*/*/") for p in root.glob(d + n)}
    for home in sorted(h for h in homes if (h / "clips").is_dir()):
        official = {s: table(home / f"{s}.tsv", "\t") for s in SPLITS}
        where = {r["client_id"]: SPLITS[s] for s, rows in official.items() for r in rows if r.get("client_id")}
        rows = table(home / "validated.tsv", "\t") or [r for rows in official.values() for r in rows]
        for row in rows:
            name, who, text = row.get("path"), row.get("client_id"), (row.get("sentence") or "").strip() or None
            if not name or not who:
                problems.add("lines without path or client_id", home)
                continue
            language = row.get("locale") or home.name
            extra = {k: row[c] for k, c in (("accent", "accents"), ("age_group", "age")) if row.get(c)}
            yield Clip(f"{language}-{Path(name).stem}", home / "clips" / name, who[:16], language=language, text=text,
                       script=text_script(text), gender=gender(row.get("gender")),
                       split=where.get(who, "train"), extra=extra)  # fmt: skip


CORPUS = Corpus(
    "Common Voice", None, None, "CC0-1.0", "very many voices and languages, rough microphones: units at scale",
    "commonvoice.mozilla.org (Mozilla Data Collective)",
    "cv-corpus-*/LANGUAGE/clips/*.mp3 beside validated.tsv, train.tsv, dev.tsv, test.tsv", read, splits="speakers",
)  # fmt: skip
