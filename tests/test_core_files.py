"""Checkpoints and configs: round trips, and every foreign, damaged or mistyped file named."""

from __future__ import annotations

import json
import os
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import full_disk, names
from torch import nn

from vivavoce.core.checkpoint import (
    FORMAT_VERSION,
    PretrainedModule,
    atomic_path,
    load_tensors,
    read_json,
    resolve_folder,
    save_tensors,
    write_json,
)
from vivavoce.core.config import from_dict, load_config, to_dict
from vivavoce.core.errors import CheckpointError, ConfigError, VivavoceError


@dataclass
class ToyConfig:
    dim: int = 6
    levels: list[int] = field(default_factory=lambda: [3, 5])


class Toy(PretrainedModule):
    model_type: ClassVar[str] = "toy"
    Config: ClassVar[type] = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        if config.dim % 2:
            raise ValueError(f"dim must be even, got {config.dim}")
        self.config = config
        self.linear = nn.Linear(config.dim, 2)
        self.register_buffer("steps", torch.tensor(70_000))  # beyond fp16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved Toy."""
    Toy(ToyConfig(dim=4, levels=[7])).save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def edit_config(folder: Path, **changes: object) -> None:
    head = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**head, **changes}))


# ---------------------------------------------------------------- checkpoints


def test_round_trip(tmp_path: Path) -> None:
    model = Toy(ToyConfig(dim=4, levels=[7]))
    model.save_pretrained(tmp_path / "deep" / "toy")
    again = Toy.from_pretrained(str(tmp_path / "deep" / "toy"))
    assert again.config == model.config and not again.training
    for (k, a), (j, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert k == j and a.dtype == b.dtype and torch.equal(a, b)
    assert names(tmp_path / "deep" / "toy") == ["config.json", "model.safetensors"]


def test_round_trip_in_half_precision(tmp_path: Path) -> None:
    model = Toy(ToyConfig(dim=64))
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b", dtype=torch.float16)
    tensors, meta = load_tensors(tmp_path / "b" / "model.safetensors")
    assert tensors["linear.weight"].dtype == torch.float16 and tensors["steps"] == 70_000
    assert meta["model_type"] == "toy"
    again = Toy.from_pretrained(tmp_path / "b")
    assert again.linear.weight.dtype == torch.float32  # computes in the model's own precision
    torch.testing.assert_close(again.linear.weight, model.linear.weight, atol=1e-4, rtol=1e-3)
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in "ab"]
    assert sizes[1] < 0.8 * sizes[0]


def test_save_does_not_change_the_model(tmp_path: Path) -> None:
    model = Toy(ToyConfig())
    before = model.linear.weight.clone()
    model.save_pretrained(tmp_path, dtype=torch.float16)
    assert torch.equal(model.linear.weight, before) and model.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file}: missing") as e:
        Toy.from_pretrained(folder)
    assert isinstance(e.value, VivavoceError)


@pytest.mark.parametrize("changes,says", [
    ({"model_type": "other"}, r"holds 'other', expected 'toy'"), ({"model_type": None}, "holds None"),
    ({"format_version": FORMAT_VERSION + 1}, rf"format version {FORMAT_VERSION + 1}.*reads {FORMAT_VERSION}"),
    ({"format_version": None}, "format version None"), ({"config": {"dim": 4, "width": 3}}, "unknown key 'width'"),
    ({"config": {"dim": "four"}}, r"dim: expected int, got 'four'"), ({"config": [1]}, "expected a mapping"),
    ({"config": {"dim": 3}}, r"config\.json: impossible for Toy \(dim must be even, got 3\)"),
    ({"config": {"dim": -2}}, r"config\.json: impossible for Toy"),
    ({"config": {"dim": 8}}, r"linear\.weight: \(2, 4\) instead of \(2, 8\)"),
])  # fmt: skip
def test_foreign_config_is_named(folder: Path, changes: dict, says: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=says) as e:
        Toy.from_pretrained(folder)
    assert "toy" in str(e.value)  # the folder


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"toy"', "\ufeff{}"])
def test_malformed_config_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="toy"):
        Toy.from_pretrained(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read as JSON"):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize("change,says", [
    (lambda t: t.pop("linear.bias"), r"missing \['linear\.bias'\]"),
    (lambda t: t.update(extra=torch.zeros(1)), r"unexpected \['extra'\]"),
    (lambda t: t.update({"linear.weight": torch.zeros(3, 4)}), r"linear\.weight: \(3, 4\) instead of \(2, 4\)"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder: Path, change, says: str) -> None:
    path = folder / "model.safetensors"
    tensors, _ = load_tensors(path)
    change(tensors)
    save_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: does not fit this architecture: {says}"):
        Toy.from_pretrained(folder)


def evil(marker: Path) -> bytes:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    return pickle.dumps(Evil())


@pytest.mark.parametrize("kind", ["text", "pickle", "torch", "empty", "cut", "folder"])
def test_only_safetensors_are_read(folder: Path, tmp_path: Path, kind: str) -> None:
    path, marker = folder / "model.safetensors", tmp_path / "executed"
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "torch":
        torch.save({"linear.weight": torch.zeros(2, 4)}, path)
    else:
        path.write_bytes({"text": b"hello " * 100, "pickle": evil(marker), "empty": b"", "cut": whole[:-4]}[kind])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (not a safetensors file|missing)"):
        Toy.from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "~/nowhere", "nowhere", "a/b/c"])
def test_missing_folder_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: no such model folder"):
        Toy.from_pretrained(name)


def test_a_file_is_no_model_folder(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such model folder"):
        resolve_folder(folder / "config.json")


def test_hub_id_without_the_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"someone/model: .*pip install huggingface_hub"):
        Toy.from_pretrained("someone/model")


def test_json_round_trip(tmp_path: Path) -> None:
    data = {"name": "Zoë", "n": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == data and "Zoë" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("bug"), KeyboardInterrupt()])
def test_atomic_path_leaves_nothing_on_failure(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "old").write_text("before")
    for name in ("old", "new"):
        with pytest.raises(type(error)), atomic_path(tmp_path / name) as temp:
            temp.write_text("half")
            assert temp.parent == tmp_path  # a rename works within one file system only
            raise error
    assert names(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "before"


@pytest.mark.parametrize("step", ["os.replace", "os.chmod"])
def test_atomic_path_leaves_nothing_when_the_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*args):
        raise PermissionError("no")

    monkeypatch.setattr(step, fail)
    with pytest.raises(PermissionError):
        write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == []


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(1000):
        with pytest.raises(OSError):
            write_json(tmp_path / "a.json", list(range(10_000)))
        with pytest.raises(Exception, match=r"(?i)file too large|os error|i/o"):
            save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(10_000)})
    assert names(tmp_path) == []


@pytest.mark.parametrize("mask,mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_respect_umask(tmp_path: Path, mask: int, mode: int) -> None:
    old = os.umask(mask)
    try:
        Toy(ToyConfig()).save_pretrained(tmp_path)
        assert os.umask(mask) == mask  # and leave it alone
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {mode}


# ---------------------------------------------------------------- configs


@dataclass
class Inner:
    dim: int = 8
    rate: float = 1e-3
    weights: list[float] = field(default_factory=lambda: [1.0])


@dataclass
class Outer:
    out: str
    inner: Inner = field(default_factory=Inner)
    minutes: float | None = None
    threads: int | None = 4
    flag: bool = False
    pair: tuple[int, ...] = (1, 2)
    boost: dict[str, float] = field(default_factory=dict)
    maybe: Inner | None = None


def yaml_file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "a.yaml"


def test_yaml_of_the_same_shape(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, """
        out: runs/ä  # comment
        inner: {dim: 3, rate: 3e-4, weights: [1, 2e-1, 3]}
        minutes: 45
        threads: null
        flag: true
        pair: [5, 6, 7]
        boost: {laugh: 2.0}
        maybe: {dim: 1}
    """)
    want = Outer("runs/ä", Inner(3, 3e-4, [1.0, 0.2, 3.0]), 45.0, None, True, (5, 6, 7), {"laugh": 2.0}, Inner(1))
    got = load_config(Outer, path)
    assert got == want and isinstance(got.inner.rate, float) and isinstance(got.minutes, float)
    assert from_dict(Outer, to_dict(got)) == want
    assert from_dict(Outer, json.loads(json.dumps(to_dict(got)))) == want


def test_overrides_reach_into_nests(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "out: a\ninner:\n")  # an empty section
    got = load_config(Outer, path, ["inner.dim=64", "inner.rate=3e-4", "inner.weights=[1, 2]", "maybe.dim=2",
                                    "out=b=c", "minutes=null", "flag=true", "pair=[9]", "boost.cry=1.5"])  # fmt: skip
    assert got == Outer("b=c", Inner(64, 3e-4, [1.0, 2.0]), None, 4, True, (9,), {"cry": 1.5}, Inner(2))
    assert load_config(Outer, None, ["out=x"]) == Outer("x")
    assert load_config(Outer, None, ["out=no"]) == Outer("no")  # train.precision=no; YAML reads a bare no as false
    assert load_config(Outer, path, ["inner.dim=1", "inner.dim=2"]).inner.dim == 2  # the last one counts


@pytest.mark.parametrize("text,says", [
    ("out: a\nfolder: b", r"unknown key 'folder'; Outer has: out, inner"),
    ("out: a\ninner: {width: 3}", r"inner: unknown key 'width'; Inner has: dim, rate, weights"),
    ("out: a\n1: 2\ntrue: 3", "unknown key 1"),
    ("inner: {dim: 3}", "out"),
    ("out: a\ninner: {dim: 3.5}", r"inner\.dim: expected int, got 3\.5"),
    ("out: a\ninner: {dim: true}", r"inner\.dim: expected int, got True"),
    ("out: a\ninner: {rate: fast}", r"inner\.rate: expected a number, got 'fast'"),
    ("out: a\ninner: {rate: true}", r"inner\.rate: expected a number"), ("out: a\ninner: {rate: [1]}", r"inner\.rate"),
    ("out: a\ninner: {rate: null}", r"inner\.rate: expected a number, got None"),
    ("out: a\ninner: {weights: 3}", r"inner\.weights: expected a list, got 3"),
    ("out: a\ninner: {weights: [1, x]}", r"inner\.weights: expected a number, got 'x'"),
    ("out: a\ninner: 3", r"inner: expected a mapping for Inner, got int"),
    ("out: a\nflag: 1", r"flag: expected bool, got 1"), ("out: a\nflag: maybe", r"flag: expected bool"),
    ("out: 3", r"out: expected str, got 3"), ("out: a\nthreads: many", r"threads: expected int, got 'many'"),
    ("- a\n- b", "expected a mapping for Outer, got list"), ("just text", "expected a mapping"),
    ("out: [a", "not valid YAML"), ("out: !!python/object/apply:os.getcwd []", "not valid YAML"),
])  # fmt: skip
def test_wrong_config_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)a\.yaml.*{says}") as e:
        load_config(Outer, yaml_file(tmp_path, text), [])
    assert isinstance(e.value, VivavoceError)


@pytest.mark.parametrize("override,says", [
    ("inner.dim", "expected key=value"), ("inner.width=3", "unknown key 'width'"), ("ouch=3", "unknown key 'ouch'"),
    ("out.deep=3", r"'out' is not a section"), ("pair=[1,", r"'\[1,' is not valid YAML"), ("=3", "unknown key ''"),
    ("inner.dim=x", r"inner\.dim: expected int, got 'x'"), ("inner=", "inner: expected a mapping"),
])  # fmt: skip
def test_wrong_override_is_named(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(Outer, yaml_file(tmp_path, "out: a"), [override])


def test_missing_or_unreadable_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such config file"):
        load_config(Outer, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Outer, tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"out: \xff\xfe")
    with pytest.raises(ConfigError, match=r"b\.yaml: not valid YAML"):
        load_config(Outer, tmp_path / "b.yaml")


def test_defaults_are_not_shared() -> None:
    a, b = from_dict(Outer, {"out": "a"}), from_dict(Outer, {"out": "b"})
    a.inner.dim, a.boost["x"] = 99, 1.0
    assert b.inner.dim == 8 and not b.boost


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "numbers.json"
    write_json(path, {"a": [float("nan"), (float("inf"), 1.5)], "b": {"c": np.float64("nan")}})
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert read_json(path) == {"a": [None, [None, 1.5]], "b": {"c": None}}
