"""The public names of the package: they exist, are imported lazily, and are the very objects of their modules."""

import re
import subprocess
import sys
from pathlib import Path

import diffusion_files
import pytest

import svclib


@pytest.mark.parametrize("name", svclib._PUBLIC)
def test_a_public_name_is_there_and_documented(name):
    found = getattr(svclib, name)
    assert callable(found) and found.__doc__ and name in dir(svclib)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError):
        svclib.sing  # noqa: B018


def test_a_name_loads_only_what_it_needs():
    code = "import sys, svclib; svclib.find_recordings; print('torch' in sys.modules, 'svclib.models' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split()[1] == "False"


def test_the_example_of_the_readme_takes_the_suggested_key_and_the_controls_of_the_kind(tmp_path, monkeypatch):
    """A diffusion instrument renders its own breaths; the controls of ``ddsp`` would attenuate them."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "svclib.convert(" in code)
    diffusion_files.make_instrument(tmp_path, "my_voice")
    diffusion_files.make_song(tmp_path / "song.wav", 110.0)
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    exec(example, known)
    controls, suggestion = known["result"].controls, known["suggestion"]
    assert controls.pitch_shift_semitones == suggestion.shift_semitones != 0
    assert (controls.attenuation_db, controls.breath) == (0.0, 0.0)
    assert len(list((tmp_path / "output").glob("*.wav"))) == 1
