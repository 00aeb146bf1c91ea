"""Panels of the four notebooks (the only importers of ipywidgets), and how a notebook begins.

This module itself imports nothing but the standard library: the notebooks' first cell runs before all is installed.
"""

import importlib.util
import os
import subprocess
import sys
from typing import Any

from svclib.utils.errors import ConfigError

# What Colab lacks, as import name: requirement. Installed without dependencies, so that nothing preinstalled changes.
MISSING_ON_COLAB = {
    "swift_f0": "swift-f0==0.3.0",
    "onnxruntime": "onnxruntime==1.31.1",
    "jaxtyping": "jaxtyping==0.3.11",
    "wadler_lindig": "wadler-lindig==0.1.8",
}


def start(variables: dict[str, Any]) -> None:
    """Begin a notebook: add what Colab lacks, let an interrupt end in a sentence, show the form of the choices.

    ``variables`` are the notebook's global ones. Colab makes a form of the choices itself.
    """
    install_missing()
    from IPython.core.getipython import get_ipython
    from IPython.display import HTML, display

    shell = get_ipython()
    if shell is not None and not os.environ.get("SVCLIB_DEBUG"):
        shell.set_custom_exc((KeyboardInterrupt,), _show_interrupt)
    if "google.colab" not in sys.modules:
        line = display(HTML("<p>Loading libraries, about 15 s ...</p>"), display_id=True)
        from svclib.notebooks.panel import Form

        if line is not None:
            line.update(HTML(""))
        form = Form(variables)
        if form.fields:
            display(form)


def _show_interrupt(shell, kind, error, traceback, tb_offset=None):
    shell._showtraceback(kind, error, ["Interrupted. What was finished is kept: run the cell again to go on."])


def install_missing() -> None:
    """Add the packages that Colab lacks; ConfigError with the remedy where that fails, or elsewhere one is missing."""
    on_colab = "google.colab" in sys.modules
    wanted = MISSING_ON_COLAB if on_colab else MISSING_ON_COLAB | {name: name for name in ("torch", "librosa", "gin")}
    missing = [package for name, package in wanted.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if not on_colab:
        raise ConfigError(
            f"Missing in the Python of this kernel, {sys.executable}: {', '.join(missing)}.",
            hint=f"Run '{sys.executable} -m pip install -e .' in svclib's folder and this cell again, or choose the "
            "kernel that has them (menu Kernel, Change Kernel).",
        )
    command = [sys.executable, "-P", "-m", "pip", "install", "-q", "--no-deps", *missing]
    if subprocess.run(command).returncode:
        raise ConfigError(f"Could not install {', '.join(missing)}; see above.", hint="It needs a network.")
    importlib.invalidate_caches()
