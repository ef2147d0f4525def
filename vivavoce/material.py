"""What a report is made of: sources, targets and every rung that a model can give, each as pairs of files."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vivavoce.changer import Changer
from vivavoce.core.audio import save
from vivavoce.core.errors import AudioError, CorpusError, VivavoceError
from vivavoce.engine import Settings
from vivavoce.eval.pairs import FIELDS, Pair, labels_of, recordings
from vivavoce.eval.report.sample import Clip, assign, draw, references
from vivavoce.rungs import cascade, codec_only, converter, make
from vivavoce.voice import Voice


@dataclass
class Material:
    """Rungs of pairs, what a reader must know, and what made them."""

    rungs: dict[str, list[Pair]]
    notes: list[str] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Clips to convert.

    Attributes:
        clips: lines of a manifest, at least `id`.
        read: a line -> samples [n] and their rate; raises CorpusError. None where `files` are the clips.
        files: id -> recording, of a plain folder.
    """

    clips: list[Clip]
    read: Callable[[Clip], tuple[Tensor, int]] | None = None
    files: dict[str, Path] = field(default_factory=dict)


def folder(root: Path, manifest: str | Path | None, out: Path) -> Corpus:
    """A plain folder of recordings (those that a report wrote into it are none). Raises CorpusError."""
    labels = labels_of(manifest) if manifest else {}
    files = {k: p for k, p in recordings(root).items() if out.resolve() not in p.resolve().parents}
    if not files:
        raise CorpusError(f"{root}: no recordings in it but those of {out}")
    return Corpus([{**(labels.get(k) or labels.get(Path(k).name) or {}), "id": k} for k in files], None, files)


def convert(changer: Changer, corpus: Corpus, voices: list[str], settings: Settings, out: Path,
            limit: int | None = None, ladder: bool = False) -> Material:  # fmt: skip
    """Convert a corpus: sources/, targets/, converted/ (with `ladder` live/, codec/, cascade/) in `out`. What is
    there from a run that was stopped stays.

    Args:
        voices: names, `.voice` files or recordings; none: other speakers of the corpus, else the embedded voices.
        limit: clips of each kind.

    Raises:
        VivavoceError: no target, no clip that can be converted, a folder of another run.
    """
    chosen = draw(corpus.clips, limit, settings.seed)
    pairs, notes = _sources(corpus, chosen, out / "sources")
    folder = out / "targets"
    targets = _named(changer, voices, folder) or _speakers(changer, corpus, settings.seed, folder)
    targets = targets or _named(changer, list(changer.voices), folder)
    if not targets:
        raise VivavoceError("no target: this model has no embedded voices; name one with --voice")
    who = {_safe(str(c["id"])) if corpus.read else str(c["id"]): str(c.get("speaker") or "") for c in chosen}
    mine = assign([(p.id, who[p.id]) for p in pairs], sorted(targets), settings.seed)
    ready = [replace(p, target=targets[mine[p.id]][1]) for p in pairs if p.id in mine]
    if len(ready) < len(pairs):
        notes.append(f"{len(pairs) - len(ready)} clips left out: no target but their own speaker")
    if not ready:
        raise VivavoceError("no clip is left to convert; name a target with --voice")
    own = {k: targets[t][0] for k, t in mine.items()}
    stamp = {"model": changer.tokeniser, "targets": mine, **asdict(settings)}
    made = make("converted", converter(changer, own, settings), ready, out / "converted", stamp)
    if not made.pairs:
        raise VivavoceError(f"not one clip could be converted; {made.notes[0]}")
    found = Material({"converted": made.pairs}, [*notes, *made.notes])
    found.run = {**{k: v for k, v in asdict(settings).items() if v is not None}, "model": changer.tokeniser,
                 "targets": len(set(mine.values()))}  # fmt: skip
    if made.audio:
        found.run["CPU time"] = f"{made.work / made.audio:.2f} of the audio's length ({made.audio:.0f} s, this run)"
    if ladder:
        live = make("live", converter(changer, own, settings, live=True), ready, out / "live", stamp)
        found.rungs["live"] = live.pairs
        found.notes += live.notes
        add_ladder(found, lambda: changer, out)
    return found


def add_ladder(found: Material, load: Callable[[], Changer], out: Path) -> None:
    """The codec-only and the cascade rung of the pairs that there are; one that cannot be had becomes a note."""
    for name in ("codec", "cascade"):
        try:
            if name == "codec":
                changer = load()
                one = codec_only(changer)
                stamp: dict[str, Any] = {"codec": changer.tokeniser, "codebooks": changer.lm.config.n_codebooks}
            else:
                one, stamp = cascade(), {"cascade": "pocketsphinx, espeak-ng"}
            made = make(name, one, found.rungs["converted"], out / name, stamp)
        except VivavoceError as e:
            found.notes.append(f"rung {name} is missing: {e}")
            continue
        found.notes += made.notes
        if made.pairs:
            found.rungs[name] = made.pairs


def _sources(corpus: Corpus, chosen: list[Clip], out: Path) -> tuple[list[Pair], list[str]]:
    """Pairs whose converted file is yet to come, and clips that could not be read."""
    pairs, notes = [], []
    for c in chosen:
        name, fields = str(c["id"]), {k: str(c[k]) for k in FIELDS if c.get(k) is not None}
        if corpus.read is None:
            pairs.append(Pair(name, corpus.files[name], corpus.files[name], None, fields))
            continue
        try:
            path = _copy(corpus, c, out / f"{_safe(name)}.wav")
        except CorpusError as e:
            notes.append(f"left out: {e}")
            continue
        pairs.append(Pair(_safe(name), path, path, None, fields))
    return pairs, notes


def _copy(corpus: Corpus, clip: Clip, path: Path) -> Path:
    """The clip as a file of its own, if it is not there yet. Raises CorpusError, AudioError."""
    if not path.is_file():
        assert corpus.read is not None
        x, rate = corpus.read(clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, x.clamp(-1.0, 1.0), rate)
    return path


Targets = dict[str, tuple[Voice, Path]]  # name -> voice and a recording of it


def _named(changer: Changer, names: list[str], out: Path) -> Targets:
    """Voices by name; of those without a recording, the preview is the reference."""
    found: Targets = {}
    for name in names:
        voice, path = changer.voice(name), Path(name)
        if name in changer.voices or path.suffix == ".voice":
            path = out / f"{_safe(voice.name)}.wav"
            if not path.is_file():
                out.mkdir(parents=True, exist_ok=True)
                save(path, *changer.preview(voice))
        found[name] = voice, path
    return found


def _speakers(changer: Changer, corpus: Corpus, seed: int, out: Path) -> Targets:
    """The speakers of a corpus who have a clip to enrol; none where there are fewer than two."""
    found: Targets = {}
    for speaker, clip in references(corpus.clips, seed).items():
        try:
            own = corpus.files.get(str(clip["id"]))
            path = own or _copy(corpus, clip, out / f"{_safe(speaker)}.wav")
            found[speaker] = changer.enroll(path, name=speaker), path
        except (AudioError, CorpusError):  # silent or damaged: another speaker serves
            continue
    return found if len(found) > 1 else {}


def _safe(name: str) -> str:
    """A file name for any id: what is not plain becomes an underscore, and a hash keeps names apart."""
    plain = re.sub(r"[^\w.-]+", "_", name).lstrip(".")[:120]
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"
