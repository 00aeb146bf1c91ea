"""Truths about the package as a whole: what the wheel carries, what an import costs, what code may never contain."""

import ast
import builtins
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import cases
import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "librosa", "scipy", "matplotlib", "ipywidgets", "onnxruntime", "tensorboard", "accelerate", "gin")


def test_importing_svclib_loads_nothing_heavy():
    code = f"import sys, svclib; print([m for m in {HEAVY!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_gin_folder_does_not_shadow_gin_config():
    assert not (ROOT / "gin" / "__init__.py").exists()
    code = "import gin; print(hasattr(gin, 'parse_config'))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.strip() == "True"


def test_wheel_carries_presets_inside_the_package(tmp_path):
    subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])", str(tmp_path)],
        cwd=_copy_of_project(tmp_path / "source"),
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    presets = {p.name for p in (ROOT / "gin").glob("*.gin")}
    assert {n.split("/")[-1] for n in names if n.startswith("svclib/gin/")} == presets
    assert not [n for n in names if n.startswith("gin/")]
    modules = {p.name for p in (ROOT / "svclib").glob("*.py")} | {p.name for p in (ROOT / "svclib").glob("*.html")}
    assert modules <= {n.split("/")[-1] for n in names if n.startswith("svclib/")}


def _copy_of_project(target: Path) -> Path:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    for name in files:
        if name.startswith(("svclib/", "gin/")) or name in ("pyproject.toml", "README.md", "LICENSE"):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / name).read_bytes())
    return target


@pytest.mark.case("P1", "I2")
def test_every_pin_is_inside_the_users_range():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {r.name.lower(): r.specifier for r in map(Requirement, project["dependencies"])}
    for file in ("requirements.txt", "requirements-classic.txt"):
        pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / file).read_text(), re.M))
        pins = {name.lower(): version for name, version in pins.items()}
        for name, specifier in ranges.items():
            assert pins[name] in specifier, f"{file}: {name}=={pins[name]} is outside {specifier}"


def test_with_a_folder_of_wheels_nothing_else_is_asked():
    """``make venv-dev WHEELS=FOLDER`` says to every installer that packages come from that folder alone."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    dry = ["make", "-nB", "venv-dev"]
    with_, without = (
        subprocess.run([*dry, *more], cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout
        for more in (["WHEELS=some wheels"], [])
    )
    installs = [line for line in with_.splitlines() if " install " in line]
    assert len(installs) >= 4 and all('--no-index --find-links "some wheels"' in line for line in installs)
    assert "--no-index" not in without


FORBIDDEN_CALLS = {"eval", "exec", "compile"}
FORBIDDEN_ATTRIBUTES = {("os", "system"), ("os", "popen"), ("yaml", "load"), ("pickle", "load"), ("pickle", "loads")}


@pytest.mark.case("P22")
@pytest.mark.parametrize("path", sorted((ROOT / "svclib").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_construct_that_runs_what_a_file_says(path):
    """No pickle, no eval, no shell, no unchecked unpacking; ``torch.load`` only with ``weights_only=True``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
            if any(n.split(".")[0] in ("pickle", "torchaudio", "dill") for n in names):
                problems.append((node.lineno, "import of pickle or torchaudio"))
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: k.value for k in node.keywords}
        truth = {k for k, v in keywords.items() if isinstance(v, ast.Constant) and v.value is True}
        if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            problems.append((node.lineno, node.func.id))
        if isinstance(node.func, ast.Attribute):
            owner = getattr(node.func.value, "id", "")
            if (owner, node.func.attr) in FORBIDDEN_ATTRIBUTES or node.func.attr == "extractall":
                problems.append((node.lineno, f"{owner}.{node.func.attr}"))
            if (owner, node.func.attr) == ("torch", "load") and "weights_only" not in truth:
                problems.append((node.lineno, "torch.load without weights_only=True"))
        if "shell" in truth or "allow_pickle" in truth:
            problems.append((node.lineno, "shell=True or allow_pickle=True"))
    assert not problems


@pytest.mark.case("P5", "B4")
@pytest.mark.parametrize("path", sorted(ROOT.glob("0*.ipynb")), ids=lambda p: p.name)
def test_notebooks_pass_no_path_to_a_shell(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = [line for c in cells if c["cell_type"] == "code" for line in "".join(c["source"]).splitlines()]
    assert not [ln for ln in lines if ln.lstrip().startswith(("!", "%%bash")) and ("$" in ln or "{" in ln)]


def test_every_case_is_held_by_a_test():
    marked = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for mark in re.findall(r"mark\.case\(([^)]*)\)", path.read_text(encoding="utf-8")):
            marked |= set(re.findall(r'"([^"]+)"', mark))
    assert marked == set(cases.CASES)


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        found = re.findall(r"^ *(?:from|import) (test_\w+|tests\b)", path.read_text(encoding="utf-8"), re.M)
        others = set(found) - {path.stem}  # a subprocess may import the test that started it
        assert not others or "fixtures" in path.parts, f"{path} imports {others}; share it in tests/helpers"


def test_the_tables_of_figures_are_those_of_the_results():
    ran = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_raises_sections_name_what_exists_and_what_the_function_itself_raises():
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "svclib").rglob("*.py"))
    }
    classes = {node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    wrong = []
    for stem, tree in trees.items():
        for node in ast.walk(tree):
            said = isinstance(node, ast.FunctionDef) and re.search(
                r"^Raises:\n((?: .*\n|\n)+)", (ast.get_docstring(node) or "") + "\n", re.M
            )
            if not said:
                continue
            named = ",".join(re.findall(r"^    (?! )([\w., ]+):", said[1], re.M)).split(",")
            inner = {n for f in ast.walk(node) if isinstance(f, ast.FunctionDef) and f is not node for n in ast.walk(f)}
            calls = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n not in inner]
            own = {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)} & classes
            short = {name.strip().split(".")[-1] for name in named}
            wrong += [f"{stem}: {node.name}: there is no {name}" for name in short - classes - set(dir(builtins))]
            wrong += [f"{stem}: {node.name}: raises {name}, and does not say so" for name in own - short]
    assert not wrong
