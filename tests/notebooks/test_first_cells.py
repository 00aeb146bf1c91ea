"""Truths about how a notebook begins: a form of the choices, one sentence for a mistake, an interrupt or a kernel that
lacks svclib, and nothing left of a bar whose work has ended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from svclib import notebooks
from svclib.notebooks import base as widgets
from svclib.notebooks import panel as panels
from svclib.utils import errors

ROOT = Path(__file__).resolve().parents[2]


def cell(name, tag):
    book = json.loads((ROOT / name).read_text(encoding="utf-8"))
    return next("".join(c["source"]) for c in book["cells"] if tag in c["metadata"].get("tags", []))


def variables(name="01_prepare.ipynb", **changed):
    """The global variables of a notebook after its first cell."""
    source = cell(name, "parameters")
    found = {"In": ["", source, "notebooks.start(globals())"]}
    exec(source, found)
    return {**found, **changed}


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(panels.Form, "_chosen", {})


@pytest.fixture
def shell(monkeypatch):
    """A shell as in a kernel, and the tracebacks it shows, line by line."""
    made, shown = InteractiveShell(), []
    monkeypatch.setattr(made, "_showtraceback", lambda kind, error, lines: shown.append(lines))
    made.shown = shown
    return made


@pytest.mark.case("user A5")
@pytest.mark.parametrize("name", ["01_prepare.ipynb", "02_train.ipynb", "03_convert.ipynb", "04_visualize.ipynb"])
def test_every_choice_of_the_first_cell_is_in_the_form_with_its_help(name):
    found = variables(name)
    form = panels.Form(found)
    choices = [key for key in found if key.isupper()]
    assert list(form.fields) == choices
    assert all(form.fields[key].value == found[key] for key in choices)
    text = " ".join(row.children[1].value for row in form.children if hasattr(row, "children"))
    assert "folder" in text.lower() and "@markdown" not in text
    assert "ddsp_z" in [option[1] if isinstance(option, tuple) else option for option in form.fields["PRESET"].options]


@pytest.mark.case("user A5")
def test_a_choice_changes_the_variable_and_stays_when_all_cells_are_run_again(tmp_path):
    for name in ("Anna", "Bert"):
        (tmp_path / "audio" / name).mkdir(parents=True)
    found = variables()
    form = panels.Form(found)
    form.fields["BASE"].value = str(tmp_path)
    assert form.fields["VOICE"].options == ("Anna", "Bert")
    form.fields["VOICE"].value = "Carla"  # who is uploaded next
    assert found["VOICE"] == "Carla"
    form.fields["VOICE"].value, form.fields["SINGER_MINUTES"].value = "Bert", 1.0
    assert (found["BASE"], found["VOICE"], found["SINGER_MINUTES"]) == (str(tmp_path), "Bert", 1.0)
    assert "run the cells below" in form.message.widget.value
    again = variables()
    form = panels.Form(again)
    assert (again["VOICE"], form.fields["VOICE"].value) == ("Bert", "Bert") and form.message.widget.value == ""
    edited = variables(VOICE="Anna")  # somebody wrote into the cell
    assert panels.Form(edited).fields["VOICE"].value == "Anna" and edited["BASE"] == str(tmp_path)


def test_values_that_no_menu_offers_are_kept():
    form = panels.Form(variables(PRESET="ddsp_small+tiny", VOICE="ann, bea"))
    assert form.fields["PRESET"].value == "ddsp_small+tiny" and form.fields["VOICE"].value == "ann, bea"
    assert panels.Form({"In": ["x = 1"]}).fields == {}


@pytest.mark.case("user A2")
def test_a_users_mistake_is_one_sentence_in_a_cell_and_all_of_it_for_who_debugs(shell, monkeypatch):
    for name in ("AudioError", "DatasetError", "ModelError", "StorageError", "ConfigError", "Cancelled"):
        shell.run_cell(f"from svclib.utils.errors import {name}\nraise {name}('It is so.', hint='Do this.')")
        assert shell.shown.pop() == ["It is so. Do this."]
    shell.run_cell("raise ConfigError('a file called \\x1b[2Jx')")  # nothing that the terminal obeys
    assert shell.shown.pop() == ["a file called ?[2Jx"]
    monkeypatch.setenv("SVCLIB_DEBUG", "1")
    shell.run_cell("raise ConfigError('It is so.')")
    assert len("\n".join(shell.shown.pop()).splitlines()) > 4
    assert issubclass(errors.ConfigError, ValueError)


@pytest.mark.case("user A4")
def test_an_interrupt_ends_in_a_sentence(shell, monkeypatch):
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    notebooks.start({})
    result = shell.run_cell("def work():\n    raise KeyboardInterrupt\nwork()")
    assert isinstance(result.error_in_exec, KeyboardInterrupt)  # so that no further cell runs
    (lines,) = shell.shown
    assert len(lines) == 1 and "Interrupted" in lines[0] and "again" in lines[0]


@pytest.mark.case("user A8")
def test_a_kernel_without_svclib_says_which_python_it_is_and_what_to_do(shell):
    source = cell("02_train.ipynb", "install").replace('find_spec("svclib")', 'find_spec("no_such_module")')
    shell.run_cell(source)
    (lines,) = shell.shown
    assert len(lines) == 1 and sys.executable in lines[0] and "pip install -e ." in lines[0] and "Kernel" in lines[0]


def test_the_first_cells_need_nothing_but_the_standard_library():
    code = "import sys, svclib.notebooks; print(bool({'numpy', 'torch', 'ipywidgets', 'IPython'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.case("user A3", "user A7")
def test_a_bar_leaves_nothing_whether_its_work_ends_or_fails(monkeypatch):
    replaced = []
    monkeypatch.setattr(widgets, "show_widget", lambda widget: replaced.append)
    with widgets.shown_progress() as bar:
        bar(0.5, "working")
    with pytest.raises(ZeroDivisionError), widgets.shown_progress() as bar:
        bar(0.5, "working")
        _ = 1 / 0
    assert replaced == ["", ""]
