"""Truths about the notebooks: they are thin, clean and say who agreed; untouched, they run top to bottom where there is
nothing yet but the synthetic singers, and leave a dataset, a run, an instrument and conversions.
"""

import ast
import html
import json
import re
import time
import tomllib
from pathlib import Path

import pytest
from explaining import assert_explains

from svclib import notebooks as colab
from svclib.utils.errors import ConfigError
from tools import notebook_links

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["01_prepare.ipynb", "02_train.ipynb", "03_convert.ipynb", "04_visualize.ipynb"]


def book(name):
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def sources(name, kind):
    return ["".join(c["source"]) for c in book(name)["cells"] if c["cell_type"] == kind]


def test_all_notebooks_are_there():
    assert sorted(p.name for p in ROOT.glob("*.ipynb")) == NAMES


@pytest.mark.case("H9")
@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_clean(name):
    cells = book(name)["cells"]
    assert book(name)["metadata"]["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert not any(c.get("outputs") or c.get("execution_count") for c in cells)
    assert [c["metadata"].get("tags", []) for c in cells].count(["parameters"]) == 1
    assert [c["metadata"].get("tags", []) for c in cells].count(["install"]) == 1
    assert cells[0]["cell_type"] == "markdown" and cells[1]["metadata"]["tags"] == ["parameters"]
    assert "**Run all**, untouched" in "".join(cells[0]["source"])  # also to who opens a copy without its kernel
    assert len({c["id"] for c in cells}) == len(cells)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_narrates_and_holds_no_logic(name):
    code = sources(name, "code")
    for source in code:
        tree = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M))
        kinds = {type(node).__name__ for node in ast.walk(tree)}
        allowed_if = "find_spec" in source
        forbidden = {"FunctionDef", "ClassDef", "Lambda", "For", "While", "Try", "With", "ListComp", "BinOp"}
        assert not kinds & (forbidden | (set() if allowed_if else {"If"})), source
        lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 12
    prose = " ".join(sources(name, "markdown"))
    assert len(prose.split()) > 150 and "agreed" in prose


@pytest.mark.case("user 04.1")
def test_the_lesson_comes_before_anything_that_needs_a_folder():
    code = sources("04_visualize.ipynb", "code")
    assert [i for i, s in enumerate(code) if "ExampleP" in s] < [i for i, s in enumerate(code) if "open_folder" in s]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_plain_assignments_with_colab_forms(name):
    source = next("".join(c["source"]) for c in book(name)["cells"] if "parameters" in c["metadata"].get("tags", []))
    for node in ast.parse(source).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)
    assert source.count("# @param") == len(ast.parse(source).body)


@pytest.mark.parametrize("name", NAMES)
def test_badge_and_install_cell_come_from_the_one_address(name):
    address = notebook_links.repository(ROOT)
    assert notebook_links.rewrite_notebook(book(name), name, address) == book(name), (
        "run `python tools/notebook_links.py`"
    )
    elsewhere = json.dumps(notebook_links.rewrite_notebook(book(name), name, "https://github.com/a/b"))
    assert address not in elsewhere and elsewhere.count("https://github.com/a/b") == 1
    assert "github/a/b/blob" in elsewhere
    assert f"/blob/main/{name})" in sources(name, "markdown")[0].splitlines()[0]


def test_badges_of_the_readme_come_from_the_one_address():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert notebook_links.rewrite_readme(text, notebook_links.repository(ROOT)) == text, (
        "run `python tools/notebook_links.py`"
    )
    for name in NAMES:
        assert f"/blob/main/{name})" in text


@pytest.mark.case("I2")
def test_install_cell_adds_only_what_is_missing(monkeypatch):
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(colab.subprocess, "run", lambda command, **k: commands.append(command) or Done)
    colab.install_missing()  # everything is here
    assert commands == []
    find = colab.importlib.util.find_spec
    monkeypatch.setattr(colab.importlib.util, "find_spec", lambda n: None if n == "swift_f0" else find(n))
    with pytest.raises(ConfigError) as found:
        colab.install_missing()
    assert_explains(found.value, remedy="pip install")
    assert "swift-f0" in str(found.value)
    monkeypatch.setitem(colab.sys.modules, "google.colab", object())
    colab.install_missing()
    assert commands[0][1:] == ["-P", "-m", "pip", "install", "-q", "--no-deps", "swift-f0==0.3.0"]


def test_the_install_cell_knows_every_package_that_colab_lacks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]}
    on_colab = {
        "torch",
        "numpy",
        "scipy",
        "librosa",
        "soundfile",
        "soxr",
        "gin-config",
        "safetensors",
        "accelerate",
        "matplotlib",
        "ipywidgets",
        "tensorboard",
        "tqdm",
        "gdown",
        "requests",
        "charset-normalizer",  # of requests
        "joblib",
        "filelock",
        "platformdirs",
        "tornado",
        "psutil",
        "jinja2",
        "scikit-learn",
    }
    named = {spec.split("==")[0] for spec in colab.MISSING_ON_COLAB.values()}
    assert wanted - on_colab <= named and named - wanted == {"wadler-lindig"}  # which jaxtyping asks for


@pytest.fixture(scope="module")
def ran(notebook_home):
    """All notebooks, run in order with the smallest preset on an empty folder: name -> executed notebook."""
    import nbclient
    import nbformat
    from browsing import copy_notebook

    folder, done = notebook_home
    for name in NAMES:
        first = {} if name.startswith("01") else {"MINUTES": 2.0}
        copy_notebook(name, folder, BASE=str(folder / "home"), PRESET="ddsp_small+tiny", SINGER_MINUTES=0.5, **first)
        notebook = nbformat.read(folder / name, 4)
        began = time.monotonic()
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        done[name] = client.execute()
        print(f"{name}: {time.monotonic() - began:.1f} s")
    return done


def shown(notebook) -> str:
    """Everything a notebook shows: HTML outputs and the values of its HTML widgets."""
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    pieces = [o["data"].get("text/html", "") for o in outputs if "data" in o]
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    pieces += [str(w["state"].get("value", "")) for w in state.values() if w["model_name"] == "HTMLModel"]
    return "\n".join(pieces)


def words(notebook) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r'(src|href|onclick)="[^"]*"', "", shown(notebook))))


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_top_to_bottom_without_a_word_on_stderr(ran, name):
    outputs = [o for c in ran[name].cells for o in c.get("outputs", [])]
    assert not [o["text"] for o in outputs if o["output_type"] == "stream"]
    assert "svclib-error" not in shown(ran[name])
    assert len(json.dumps(ran[name])) < (16e6 if name.startswith("04") else 3e6)  # light enough to keep; two pages


def test_preparing_shows_report_dataset_and_a_chunk(ran):
    text = words(ran["01_prepare.ipynb"])
    assert "two synthetic singers stand in" in text and "files usable" in text and "held out for validation" in text
    page = shown(ran["01_prepare.ipynb"])
    assert page.count("<audio") == 1 and page.count("<img") == 2


@pytest.mark.case("P19")
def test_training_shows_numbers_curve_previews_and_makes_an_instrument(ran, notebook_home):
    text = words(ran["02_train.ipynb"])
    for expected in ("12 of 12", "held-out loss", "steps per second", "saved", "Reconstruction", "Held-out piece 1"):
        assert expected in text
    assert "6 FFT sizes" in text and "log rule v1" in text
    assert ("two-dimensional map of z paths" in shown(ran["02_train.ipynb"])) != ("has no z" in text)
    made = {p.name for p in (notebook_home[0] / "home" / "instruments").iterdir()}
    assert made == {"aria-ddsp_small+tiny.zip", "base.zip"}  # notebook 04 brings the base model where no diffusion is


@pytest.mark.case("P46")
def test_converting_sings_at_once_and_shows_the_panel(ran, notebook_home):
    text = words(ran["03_convert.ipynb"])
    assert "Harmonic part" in text and "Saved as" in text
    made = sorted(p.suffix for p in (notebook_home[0] / "home" / "output").iterdir())
    assert made == [".json", ".wav"]
    assert shown(ran["03_convert.ipynb"]).count("<audio") == 4


def test_visualizing_shows_harmonics_noise_and_one_moment(ran):
    page = shown(ran["04_visualize.ipynb"])
    assert page.count("<iframe") == page.count("srcdoc=") == 2 and page.count('sandbox="allow-scripts"') == 2
    page = re.sub(r'srcdoc="[^"]*"', "", page)
    assert "no diffusion or DiffWave instrument" not in page and "Change one thing" in page  # the base model
    assert page.count("<audio") == 3 and page.count("data:image/png") in (3, 5)  # two more where the model has z
