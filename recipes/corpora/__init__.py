"""Public corpora: from the folder that its publisher gives out to our manifest. A module a corpus."""

from __future__ import annotations

from vivavoce.core.errors import CorpusError
from vivavoce.recipes.corpora import (
    common_voice,
    crema_d,
    emodb,
    emogator,
    emov_db,
    esd,
    expresso,
    libri,
    own,
    ravdess,
    tess,
    vctk,
    vocalsound,
)
from vivavoce.recipes.corpora.common import Corpus, Summary, write_manifest

CORPORA: dict[str, Corpus] = {
    "crema_d": crema_d.CORPUS,
    "ravdess": ravdess.CORPUS,
    "tess": tess.CORPUS,
    "emodb": emodb.CORPUS,
    "esd": esd.CORPUS,
    "emov_db": emov_db.CORPUS,
    "expresso": expresso.CORPUS,
    "vocalsound": vocalsound.CORPUS,
    "emogator": emogator.CORPUS,
    "vctk": vctk.CORPUS,
    "libritts": libri.LIBRITTS,
    "librispeech": libri.LIBRISPEECH,
    "common_voice": common_voice.CORPUS,
    "own": own.CORPUS,
}


def make(name: str, folder: str, out: str, splits: str = "auto") -> Summary:
    """The manifest of the corpus `name` in `folder`; see `write_manifest`. Raises CorpusError: unknown name too."""
    key = name.lower().replace("-", "_").replace(" ", "_")
    if key not in CORPORA:
        raise CorpusError(f"{name}: unknown corpus; known are {', '.join(CORPORA)}")
    return write_manifest(key, CORPORA[key], folder, out, splits)


__all__ = ["CORPORA", "Corpus", "Summary", "make", "write_manifest"]
