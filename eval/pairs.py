"""Which converted file belongs to which source: by name, by a manifest, or by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from vivavoce.core import audio
from vivavoce.core.errors import CorpusError

FIELDS = ("speaker", "language", "emotion", "vocalisation")  # taken from a manifest
LINKS = ("converted", "target")  # of a manifest: paths inside the converted and the targets folder


@dataclass(frozen=True)
class Pair:
    """One conversion: what went in, what came out, a recording of the target, labels of the source."""

    id: str
    source: Path
    converted: Path
    target: Path | None = None
    fields: dict[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Paired:
    """Pairs found, and the names that stand on one side only."""

    pairs: list[Pair]
    only_source: list[str]
    only_converted: list[str]


def pair_files(sources: str | Path, converted: str | Path, target: str | Path | None = None,
               targets: str | Path | None = None, manifest: str | Path | None = None) -> Paired:  # fmt: skip
    """Pair two folders by relative path without suffix, or one file with another.

    Args:
        target: one recording of the target voice for all pairs.
        targets: folder with one for each, by the same names; a pair without one is measured without.
        manifest: JSONL; lines are found by `id`, or by `path` without suffix. A line's `converted` names another
            file of the converted folder, its `target` another of the targets.

    Raises:
        CorpusError: a folder or file that is missing or empty, a name twice, no pair at all.
        AudioError: `target` is not readable.
    """
    left, right = recordings(sources), recordings(converted)
    if Path(sources).is_file() and Path(converted).is_file():
        right = dict(zip(left, right.values()))
    if target is not None:
        audio.open_audio(target).close()
    voices = recordings(targets) if targets is not None else {}
    labels = labels_of(manifest) if manifest is not None else {}
    pairs, used = [], set()
    for key, path in left.items():
        own = labels.get(key) or labels.get(Path(key).name) or {}
        names = {k: _key(own[k]) if k in own else key for k in LINKS}
        if names["converted"] in right:
            used.add(names["converted"])
            voice = Path(target) if target is not None else voices.get(names["target"])
            fields = {k: v for k, v in own.items() if k in FIELDS}
            pairs.append(Pair(key, path, right[names["converted"]], voice, fields))
    if not pairs:
        raise CorpusError(f"{converted}: holds no file named as one in {sources} (for example {next(iter(left))}); a "
                          "converted file must keep its source's name, or the manifest say it")  # fmt: skip
    found = {p.id for p in pairs}
    return Paired(pairs, [k for k in left if k not in found], [k for k in right if k not in used])


def recordings(root: str | Path) -> dict[str, Path]:
    """Relative path without suffix -> recording, in order of name. Raises CorpusError."""
    root = Path(root)
    if root.is_file():
        return {root.stem: root}
    if not root.is_dir():
        raise CorpusError(f"{root}: no such file or folder")
    found: dict[str, Path] = {}
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in audio.SUFFIXES and p.is_file()):
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in found:
            raise CorpusError(f"{path}: a file of the same name but suffix stands beside it; remove one")
        found[key] = path
    if not found:
        raise CorpusError(f"{root}: no recordings in it ({', '.join(audio.SUFFIXES)})")
    return found


def labels_of(manifest: str | Path) -> dict[str, dict[str, str]]:
    """Id, path without suffix, or bare name of a clip -> its fields (and `converted`, `target`, if the manifest
    says them). Raises CorpusError: a file or a line that cannot be read."""
    try:
        lines = Path(manifest).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise CorpusError(f"{manifest}: cannot be read ({e})") from None
    out: dict[str, dict[str, str]] = {}
    for n, line in enumerate(lines, 1):
        try:
            clip = json.loads(line)
            fields = {k: str(clip[k]) for k in (*FIELDS, *LINKS) if clip.get(k) is not None}
            out[str(clip["id"])] = fields
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
            raise CorpusError(f"{manifest}:{n}: {e!r}; each line is a JSON object with at least id") from None
        if clip.get("path"):
            out.setdefault(Path(clip["path"]).with_suffix("").as_posix(), fields)
            out.setdefault(Path(clip["path"]).stem, fields)
    return out


def _key(path: str) -> str:
    """`a/b.wav` -> `a/b`, but `v1.2` stays: only suffixes of recordings go."""
    p = Path(path)
    return (p.with_suffix("") if p.suffix.lower() in audio.SUFFIXES else p).as_posix()
