"""The public names of the package: they exist, are imported lazily, and are the very objects of their modules."""

import subprocess
import sys

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
