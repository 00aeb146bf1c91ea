"""The shape of the package: the order of its folders, no import circles, one home for each heavy library."""

import ast
import graphlib
from pathlib import Path

import pytest

import svclib

PACKAGE = Path(svclib.__file__).parent
FOLDERS = "utils audio features data models training conversion analysis notebooks cli".split()
HOMES = {
    "gin": "utils/config.py",
    "gdown": "utils/download.py",
    "requests": "utils/download.py",
    "matplotlib": "analysis/plots/",
    "ipywidgets": "notebooks/",
}
FORBIDDEN = {"torchaudio", "pickle"}
MODULES = {
    ".".join(("svclib", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(path: Path, inside_functions: bool = True) -> list[tuple[str, int]]:
    """Absolute dotted names that a file imports, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else tree.body
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def module_of(name: str) -> str | None:
    """The module of svclib that a dotted name lies in: ``svclib.audio.units.hz_to_midi`` -> ``svclib.audio.units``."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") > 0 and name != "svclib.__main__"])
def test_a_folder_imports_only_folders_before_it(name):
    own = name.split(".")[1]
    allowed = set(FOLDERS[: FOLDERS.index(own) + 1]) - ({"notebooks"} if own == "cli" else set())
    for target, line in imports(MODULES[name]):
        parts = (module_of(target) or "").split(".")
        if len(parts) > 1:
            assert parts[1] in allowed, f"{MODULES[name]}, line {line}: {own} imports {target}"


def test_no_circular_imports():
    graph = {}
    for name, path in MODULES.items():
        if path.name != "__init__.py":
            targets = {module_of(target) for target, _ in imports(path)} - {None, name}
            graph[name] = {t for t in targets if MODULES[t].name != "__init__.py"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError and names the circle


@pytest.mark.parametrize("name", MODULES)
def test_heavy_libraries_have_one_home_and_unsafe_ones_none(name):
    path = MODULES[name].relative_to(PACKAGE).as_posix()
    for target, line in imports(MODULES[name]):
        library = target.split(".")[0]
        assert path.startswith(HOMES.get(library, "")), f"{path}, line {line}: imports {library}"
        assert library not in FORBIDDEN, f"{path}, line {line}: imports {library}"
    for call in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call):
            source = ast.unparse(call)
            assert ast.unparse(call.func) not in {"eval", "exec", "os.system"}, f"{path}, line {call.lineno}: {source}"
            if ast.unparse(call.func) == "torch.load":  # tensors only: a user's own weights, or an installed package's
                assert "weights_only=True" in source, f"{path}, line {call.lineno}: {source}"
