"""What judges heard, kept by content: a report that was interrupted, or shares its sources with another, resumes."""

from __future__ import annotations

import hashlib
import io
import sqlite3
from pathlib import Path

import numpy as np

from vivavoce.core.errors import CorpusError

Arrays = dict[str, np.ndarray]


class Cache:
    """One SQLite file: (digest of the audio file, judge and version) -> named arrays. Safe to share and to kill.

    Args:
        path: of the file; None keeps nothing.

    Raises:
        CorpusError: a file that cannot be made, or is something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._base: sqlite3.Connection | None = None
        self._digests: dict[tuple[str, int, int], bytes] = {}
        if path is None:
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            self._base.execute("create table if not exists heard (clip blob, judge text, arrays blob, "
                               "primary key (clip, judge))")  # fmt: skip
        except (sqlite3.Error, OSError) as e:
            raise CorpusError(f"{path}: no cache of judgements ({e}); remove the file or name another") from None

    def digest(self, path: Path) -> bytes:
        """SHA-256 of the file's bytes."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(path.read_bytes()).digest()
        return self._digests[key]

    def get(self, path: Path, judge: str) -> Arrays | None:
        """What was kept, or None."""
        if self._base is None:
            return None
        row = self._base.execute("select arrays from heard where clip = ? and judge = ?",
                                 (self.digest(path), judge)).fetchone()  # fmt: skip
        if row is None:
            return None
        with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
            return dict(arrays)

    def put(self, path: Path, judge: str, arrays: Arrays) -> None:
        if self._base is not None:
            data = io.BytesIO()
            np.savez(data, **arrays)  # type: ignore[arg-type]
            self._base.execute("insert or replace into heard values (?, ?, ?)",
                               (self.digest(path), judge, data.getvalue()))  # fmt: skip

    def close(self) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None
