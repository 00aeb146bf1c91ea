"""Identifiers and docstrings use the terms of the field, see ``helpers/wording.py``."""

import pytest
import wording


@pytest.mark.parametrize("folder", wording.folders())
def test_terms_of_the_field(folder):
    found = [line for path in wording.files(folder) for line in wording.problems(path)]
    assert not found, "\n".join(found)


def test_the_check_finds_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setattr(wording, "PACKAGE", tmp_path)
    path = tmp_path / "example.py"
    path.write_text(
        '"""What a run is."""\n'
        "import os\n\n\n"
        "def walked(x, told=None):\n"
        '    """Always a time-stretch,\n\n    halfway heard in a way.\n    """\n'
        "    self.heardLast = os.walk(x)\n"
    )
    found = sorted(line.split(": ", 1)[1].split(";")[0] for line in wording.problems(path))
    assert [line for line in found if line.startswith("docstring")] == ["docstring: 'heard'", "docstring: 'way'"]
    assert [line for line in found if line.startswith("'")] == [
        "'heardLast': 'heard'",
        "'told': 'told'",
        "'walked': 'walked'",
    ]
    assert "the docstring begins with 'What'" in found and len(found) == 6
