"""The package's shape: modules import only modules above them in the package's own list; libraries have one home."""

import ast
import re
from pathlib import Path

import pytest

import svclib

PACKAGE = Path(svclib.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"}
HOMES = {"gin": r"config", "matplotlib": r"plots(_\w+)?", "ipywidgets": r"widgets(_\w+)?"}  # patterns of module names
NEVER = {"torchaudio", "pickle"}


def listed() -> list[str]:
    """Module names in the order of the package's docstring: the word after the room's name, or the first of a line."""
    names = []
    for line in svclib.__doc__.splitlines():
        match = re.match(r"^    (?:[\w ]{1,11}\s+|\s{12})(\w+)\s{2,}\S", line)
        if match:
            names.append(match[1])
    return names


def imports(path: Path) -> list[tuple[str, int]]:
    """Dotted names a file imports anywhere, also inside functions, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_the_list_names_every_module_once():
    names = listed()
    assert len(names) == len(set(names)), "a module is listed twice"
    assert set(names) == set(MODULES), (
        f"not listed: {sorted(set(MODULES) - set(names))}; listed but absent: {sorted(set(names) - set(MODULES))}"
    )


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_import_only_modules_above_them(name):
    order = listed()
    if name not in order:
        pytest.fail(f"{name} is not in the list of svclib/__init__.py")
    above = set(order[: order.index(name)])
    for target, line in imports(MODULES[name]):
        parts = target.split(".")
        if parts[0] == "svclib" and len(parts) > 1 and parts[1] in MODULES:
            assert parts[1] in above, f"{name}.py, line {line}: imports {parts[1]}, which is not above it"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_some_libraries_have_one_home_and_some_none(name):
    for target, line in imports(MODULES[name]):
        library = target.split(".")[0]
        assert re.fullmatch(HOMES.get(library, ".*"), name), f"{name}.py, line {line}: imports {library}"
        assert library not in NEVER, f"{name}.py, line {line}: imports {target}"
    calls = [n for n in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    for call in calls:
        where = f"{name}.py, line {call.lineno}: {ast.unparse(call)}"
        assert ast.unparse(call.func) not in {"eval", "exec", "os.system"}, where
        if ast.unparse(call.func) == "torch.load":  # weights of an installed package or a person's own, tensors only
            assert name in {"crepe", "nsf_weights", "speaker"} and "weights_only=True" in ast.unparse(call), where
