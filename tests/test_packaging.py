"""The wheel holds one package and all of its data, importing it is light, and imports run one way."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("vivavoce", "core", "codec", "units", "lm", "eval", "recipes", "pretrained")
MAY_IMPORT = {  # room -> the other rooms that it may import, at any depth
    "core": set(),
    "pretrained": set(),
    "codec": {"core"},
    "units": {"core"},
    "lm": {"core"},
    "eval": {"core"},
    "recipes": {"core", "codec", "units", "lm", "eval", "vivavoce"},
    "vivavoce": {"core", "codec", "units", "lm", "eval", "pretrained"},
}


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **env}, timeout=120)


def sources() -> list[Path]:
    """The files of the repository that git tracks or would track, relative to its root."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.fail(f"these tests need the git checkout: {listed.stderr}")
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


# ---------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built offline from a copy, so that nothing is written into the tree and nothing ignored gets in."""
    copy = tmp_path_factory.mktemp("copy")
    for path in sources():
        if path.parts[0] in ROOMS or path.parent == Path():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, copy / path)
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out", cwd=copy)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (path,) = (copy / "out").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_installs_one_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"vivavoce"} and len(tops) == 2


def test_wheel_holds_every_module_and_all_data(wheel: zipfile.ZipFile) -> None:
    inside = {n for n in wheel.namelist() if n.startswith("vivavoce/")}
    data = {".py", ".yaml", ".json", ".safetensors", ".voice", ".html", ".js", ".css", ".typed"}
    want = {path.as_posix() if path.parts[0] == "vivavoce" else f"vivavoce/{path.as_posix()}"
            for path in sources() if path.parts[0] in ROOMS and path.suffix in data}  # fmt: skip
    assert want - inside == set()
    assert {n for n in inside if not n.endswith(".py")} >= {"vivavoce/py.typed", "vivavoce/recipes/codec.yaml"}
    assert not [n for n in inside if "/tests/" in n or n.endswith((".pyc", ".pt", ".pkl", ".wav"))]


def test_wheel_carries_the_default_model(wheel: zipfile.ZipFile) -> None:
    inside = [n for n in wheel.namelist() if n.startswith("vivavoce/pretrained/")]
    assert [n for n in inside if n.endswith(".safetensors")] and [n for n in inside if n.endswith(".json")]
    assert sum(wheel.getinfo(n).file_size for n in inside) < 48_000_000


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    text = wheel.read(name).decode()
    assert "\nName: vivavoce\n" in text and "License-Expression: Apache-2.0" in text
    assert wheel.read(name.replace("METADATA", "entry_points.txt")).decode().split() == [
        "[console_scripts]", "vivavoce", "=", "vivavoce.cli:main"]  # fmt: skip
    assert any(n.endswith("licenses/LICENSE") for n in wheel.namelist())


def test_wheel_imports_from_elsewhere(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = """
import vivavoce, vivavoce.core.config, vivavoce.recipes, vivavoce.eval
from importlib.util import find_spec
assert find_spec("vivavoce.codec.model") and find_spec("vivavoce.lm")
print(vivavoce.__file__)
"""
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


# ---------------------------------------------------------------- import vivavoce


def python(code: str) -> str:
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_light() -> None:
    code = """
import sys, time
t = time.perf_counter()
import vivavoce
t = time.perf_counter() - t
heavy = [m for m in ("torch", "numpy", "soundfile", "safetensors", "yaml") if m in sys.modules]
import json
print(json.dumps([t, heavy]))
"""
    best = min((json.loads(python(code)) for _ in range(2)), key=lambda r: r[0])
    assert best[1] == [] and best[0] < 1.0


def test_names_resolve_lazily() -> None:
    names = json.loads(python("import vivavoce, json; print(json.dumps(vivavoce.__all__))"))
    assert {"load", "save"} <= set(names)
    python("""
import vivavoce, sys
for name in vivavoce.__all__:
    assert getattr(vivavoce, name) is not None and name in dir(vivavoce), name
assert not [m for m in sys.modules if m.startswith("vivavoce.recipes")]
try:
    vivavoce.nonsense
except AttributeError as e:
    assert "nonsense" in str(e)
else:
    raise SystemExit("no AttributeError")
""")


def test_command_line_answers_without_torch() -> None:
    code = """
import sys
from vivavoce.cli import main
try: main(["--help"])
except SystemExit as e: assert not e.code, e.code
assert "torch" not in sys.modules
"""
    assert "convert" in python(code)


# ---------------------------------------------------------------- imports run one way


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(absolute dotted name, line, whether at the module's top level) of every import in a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))
    package = [*(() if path.parts[0] == "vivavoce" else ("vivavoce",)), *path.parts[:-1]]
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lazy = {id(n) for f in functions for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from vivavoce import recipes` imports a room too
            names = [module, *(f"{module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("vivavoce."):
            names = [node.value]  # importlib.import_module("vivavoce.x"), lazy tables
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) not in lazy


def room_of(name: str) -> str | None:
    """The room that a dotted name lives in; None outside the package."""
    top, *rest = name.split(".")
    if top != "vivavoce":
        return None
    return rest[0] if rest and rest[0] in ROOMS else "vivavoce"


MODULES = [p for p in sources() if p.suffix == ".py" and p.parts[0] in ROOMS]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    wrong = []
    for path in (p for p in MODULES if p.parts[0] == room):
        cli = path.parts[:2] == ("vivavoce", "cli")
        for name, line, top in imports(path):
            target = room_of(name)
            if target in (None, room) or (name == "vivavoce" and room != "core"):
                continue
            if cli and target == "recipes" and not top:
                continue  # the command line reaches recipes, when asked to
            if target not in MAY_IMPORT[room]:
                wrong.append(f"{path}:{line} imports {name}")
    assert wrong == []


def test_no_room_is_imported_by_its_folder_name() -> None:
    """`import core` works from the repository's root and nowhere else."""
    wrong = [f"{path}:{line} imports {name}" for path in MODULES for name, line, _ in imports(path)
             if name.split(".")[0] in set(ROOMS) - {"vivavoce"}]  # fmt: skip
    assert wrong == []


def test_tests_and_benchmarks_are_imported_by_nothing() -> None:
    wrong = [f"{path}:{line}" for path in MODULES for name, line, _ in imports(path)
             if name.split(".")[0] in ("tests", "benchmarks", "conftest", "pytest")]  # fmt: skip
    assert wrong == []


def test_no_pickle_is_ever_read() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", None)]
                assert not {"pickle", "dill", "joblib", "shelve"} & set(names), f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
                ok = safe.get("weights_only") == "True" if "torch" in ast.unparse(node.func) else (
                    safe.get("allow_pickle", "False") == "False")  # fmt: skip
                assert ok, f"{path}:{node.lineno}: {ast.unparse(node)}"
