"""Tokens made of tokens: the same clips with other source units, for any recipe that reads a folder of tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vivavoce.core.checkpoint import atomic_path, write_json
from vivavoce.core.errors import CorpusError
from vivavoce.recipes.tokenise import Tokens

TYPES = {"content": np.uint32, "expression": np.uint8, "prosody": np.int16}
Columns = dict[str, np.ndarray]  # content, expression, prosody; content_1, expression_1 ... of views
Change = Callable[[str, int], "Columns | None"]  # split, clip -> what it is to hold; None: leave it out


def derive(tokens: Tokens, out: str | Path, splits: list[str], change: Change, head: dict[str, Any]) -> dict[str, int]:
    """Write tokens whose content, expression and views are what `change` says; all other columns are copied
    unless it gives them, too.

    Args:
        head: goes into tokens.json over what `tokens` says: `views`, and whatever else has changed.

    Returns:
        clips kept, a number a split.

    Raises:
        CorpusError: `out` holds other tokens, `tokens` is unfinished, or no clip is kept in a split.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out, kept, columns = Path(out), dict.fromkeys(splits, 0), ("content", "expression")
    if (out / "tokens.json").is_file():
        raise CorpusError(f"{out}: holds tokens already; choose another out= or remove it")
    shards = {s: tokens.head["shards"].get(s, 0) for s in splits}
    for split in splits:
        clip = 0
        (out / split).mkdir(parents=True, exist_ok=True)
        for k in tqdm(range(shards[split]), desc=f"{out.name}/{split}", unit="shard"):
            path = tokens.folder / split / f"{k:05d}.parquet"
            if not path.is_file():
                raise CorpusError(f"{path}: missing; run the tokeniser again")
            table = pq.read_table(path)
            found = [change(split, clip + i) for i in range(len(table))]
            clip += len(table)
            rows = [f for f in found if f is not None]
            kept[split] += len(rows)
            table = table.filter(pa.array([f is not None for f in found]))
            names = set(columns) | set(rows[0] if rows else ())
            table = table.drop_columns([c for c in table.column_names if c.split("_")[0] in columns or c in names])
            names |= {f"{c}_{v}" for c in columns for v in range(1, head["views"] + 1)}
            for name in sorted(names):
                kind = TYPES[name.split("_")[0]]
                parts = [np.asarray(r[name]).astype(kind).reshape(-1) for r in rows]
                ends = np.cumsum([0] + [len(p) for p in parts], dtype=np.int32)
                values = pa.array(np.concatenate([np.zeros(0, kind), *parts]))
                table = table.append_column(name, pa.ListArray.from_arrays(pa.array(ends), values))
            with atomic_path(out / split / path.name) as temp:
                pq.write_table(table, temp, compression="zstd")
        if not kept[split]:
            raise CorpusError(f"{tokens.folder}: nothing of split {split!r} is left to write")
    write_json(out / "tokens.json", {**tokens.head, **head, "shards": shards})
    return kept
