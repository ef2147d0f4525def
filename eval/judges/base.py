"""What every judge has in common, and how one is found by name."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from vivavoce.core.errors import VivavoceError

RATE = 16000
Heard = dict[str, np.ndarray]  # an analysis: named arrays of numbers or text, so that it can be kept in a file
NAN = float("nan")


class JudgeError(VivavoceError):
    """A judge that is unknown, or whose package or model is not there."""


@contextlib.contextmanager
def stand_in(name: str, **attributes: Any) -> Iterator[None]:
    """Where module `name` is not installed, an empty one with these attributes takes its place for a while.

    For packages that import, for a trifle that is not used here, what is hard to install.
    """
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = module
        try:
            yield
        finally:
            del sys.modules[name]
    else:
        yield


class Judge(ABC):
    """A judge's card and its two verbs.

    Attributes:
        kind: what it judges; a report has at most one judge of a kind, and the columns belong to the kind.
        name: how reports and the command line call it: the kind, or KIND:MODEL for a model of a hub.
        package, install: the distribution behind it, and what `pip` needs to hear to get it.
        version, licence: of that package, of the model, or of the method where it is our own.
        columns: every number that `compare` may return.
        min_seconds: clips shorter than this are not judged.
        wordless: whether clips without words are judged too.
        languages: those it understands (None: all); a clip of another language is not judged.
    """

    kind: ClassVar[str]
    package: ClassVar[str] = "vivavoce"
    install: ClassVar[str] = ""
    licence: str = "Apache-2.0"
    columns: ClassVar[tuple[str, ...]]
    min_seconds: ClassVar[float]
    wordless: ClassVar[bool] = True
    languages: ClassVar[tuple[str, ...] | None] = None
    own_version: ClassVar[str] = "1"  # raised when what `analyse` returns changes

    @property
    def name(self) -> str:
        return self.kind

    @property
    def version(self) -> str:
        return self.own_version if self.package == "vivavoce" else importlib.metadata.version(self.package)

    @functools.cached_property
    def key(self) -> str:
        """What an analysis depends on beside the clip."""
        return f"{self.name} {self.version} {self.own_version}"

    def scores(self) -> list[dict[str, Any]]:
        """The judge's own scores on labelled data: dicts of `what`, `value`, `n` and, where known, `low`, `high`."""
        from vivavoce.eval.judges.scores import known

        return known(self.name, self.version)

    def card(self) -> dict[str, Any]:
        """Who judges, for a summary: kind, package, version, licence, own scores."""
        return {"kind": self.kind, "package": self.package, "version": self.version, "licence": self.licence,
                "scores": self.scores()}  # fmt: skip

    def labels_of(self, fields: dict[str, str]) -> dict[str, str]:
        """Columns that restate a clip's labels in the judge's own words; `fields` are a manifest's."""
        return {}

    def require(self, module: str) -> types.ModuleType:
        """Import a module of the judge's package. Raises JudgeError saying how to get it."""
        try:
            return importlib.import_module(module)
        except ImportError as e:
            raise JudgeError(f"judge {self.name!r} is not available ({e}); "
                             f"to have it: pip install {self.install}") from None  # fmt: skip

    @abstractmethod
    def analyse(self, wave: np.ndarray) -> Heard:
        """What the judge hears in one 16 kHz mono float32 clip [samples] that is not silent."""

    @abstractmethod
    def compare(self, source: Heard, converted: Heard, target: Heard | None = None) -> dict[str, float | str]:
        """Numbers of one conversion from three analyses; `target` is None where there is no reference."""
