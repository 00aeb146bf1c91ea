"""Panels of the four notebooks (the only importers of ipywidgets), and the packages that Colab lacks.

This module itself imports nothing but the standard library: the notebooks' first cell runs before all is installed.
"""

import importlib.util
import subprocess
import sys

# What Colab lacks, as import name: requirement. Installed without dependencies, so that nothing preinstalled changes.
MISSING_ON_COLAB = {
    "swift_f0": "swift-f0==0.3.0",
    "onnxruntime": "onnxruntime==1.31.1",
    "jaxtyping": "jaxtyping==0.3.11",
    "wadler_lindig": "wadler-lindig==0.1.8",
}


def install_missing() -> None:
    """Add the packages that Colab lacks; RuntimeError with the remedy where that fails, or elsewhere one is missing."""
    missing = [wanted for name, wanted in MISSING_ON_COLAB.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if "google.colab" not in sys.modules:
        raise RuntimeError(
            f"Missing packages: {', '.join(missing)}. Install svclib with its dependencies, for example with "
            f"'{sys.executable} -m pip install -e .' in its folder, and run this cell again."
        )
    command = [sys.executable, "-P", "-m", "pip", "install", "-q", "--no-deps", *missing]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"Could not install {', '.join(missing)}; see above. Without network nothing can be added.")
    importlib.invalidate_caches()
