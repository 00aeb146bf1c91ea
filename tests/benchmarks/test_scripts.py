"""Every script of the benchmarks can be loaded: what it names exists."""

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS])
def test_the_modules_of_a_script_have_what_it_uses(name):
    module, missing = importlib.import_module(name), []
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = getattr(module, node.value.id, None)
            if type(owner).__name__ == "module" and not hasattr(owner, node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    assert missing == []
