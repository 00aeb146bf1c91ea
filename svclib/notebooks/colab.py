"""Google Colab: what a notebook's first cell needs, with nothing but the standard library.

The address of the repository stands once, in ``pyproject.toml``. ``python -m svclib.notebooks.colab``, run in a clone, writes the
badges and install cells that follow from it into the notebooks and the README; a test compares them.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

# What Colab lacks, as import name: requirement. Installed without dependencies, so that nothing preinstalled changes.
MISSING_ON_COLAB = {
    "swift_f0": "swift-f0==0.3.0",
    "onnxruntime": "onnxruntime==1.31.1",
    "jaxtyping": "jaxtyping==0.3.11",
    "wadler_lindig": "wadler-lindig==0.1.8",
}
BADGE_SVG = "https://colab.research.google.com/assets/colab-badge.svg"


def install_missing() -> None:
    """Add the packages that Colab lacks; on other machines say what is missing.

    Raises:
        RuntimeError: if a package is missing and this is not Colab, or cannot be installed; says what to do.
    """
    missing = [wanted for name, wanted in MISSING_ON_COLAB.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if "google.colab" not in sys.modules:
        raise RuntimeError(
            f"Missing packages: {', '.join(missing)}. Install svclib with its dependencies, for example with "
            f"'{sys.executable} -m pip install -e .' in its folder, and run this cell again."
        )
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *missing]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"Could not install {', '.join(missing)}; see above. Without network nothing can be added.")
    importlib.invalidate_caches()


# ------------------------------------------------------------------------- written into notebooks and README by main()


def badge(notebook: str, repository: str) -> str:
    """Markdown of the badge that opens a notebook of a GitHub repository in Colab."""
    path = repository.removeprefix("https://github.com/")
    return f"[![Open In Colab]({BADGE_SVG})](https://colab.research.google.com/github/{path}/blob/main/{notebook})"


def install_cell(repository: str) -> str:
    """Source of the notebooks' install cell."""
    return (
        '#@title Install { display-mode: "form" }\n'
        "import importlib.util\n"
        "\n"
        'if importlib.util.find_spec("svclib") is None:\n'
        f"    %pip install -q --no-deps git+{repository}\n"
        "from svclib.notebooks import colab\n"
        "\n"
        "colab.install_missing()"
    )


def repository(root: Path) -> str:
    """The address in ``pyproject.toml``."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def rewritten(notebook: dict, name: str, address: str) -> dict:
    """A notebook with badge (first line of its first cell) and install cell (tagged ``install``) for an address."""
    notebook = json.loads(json.dumps(notebook))
    first = notebook["cells"][0]
    lines = "".join(first["source"]).split("\n")
    rest = lines[1:] if lines[0].startswith("[![Open In Colab]") else ["", *lines]
    first["source"] = "\n".join([badge(name, address), *rest]).splitlines(keepends=True)
    for cell in notebook["cells"]:
        if "install" in cell["metadata"].get("tags", []):
            cell["source"] = install_cell(address).splitlines(keepends=True)
    return notebook


def rewritten_readme(text: str, address: str) -> str:
    """The README with a badge in the second column of every table row that begins with a notebook's name."""

    def row(match):
        return f"| `{match[1]}` | {badge(match[1] + '.ipynb', address)} |"

    return re.sub(r"^\| `(0\d_\w+)` \| [^|]* \|", row, text, flags=re.M)


def main(root: str = ".") -> int:
    """Rewrite badges and install cells of a clone."""
    folder = Path(root)
    address = repository(folder)
    for path in sorted(folder.glob("0*.ipynb")):
        book = rewritten(json.loads(path.read_text(encoding="utf-8")), path.name, address)
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = folder / "README.md"
    readme.write_text(rewritten_readme(readme.read_text(encoding="utf-8"), address), encoding="utf-8")
    print(f"badges and install cells point to {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
