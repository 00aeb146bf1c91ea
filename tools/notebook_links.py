"""Write the Colab badges and install cells, which follow from the address in pyproject.toml, into notebooks and README.

Run it in a clone: ``python tools/notebook_links.py``. A test compares the files with what it would write.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

BADGE_SVG = "https://colab.research.google.com/assets/colab-badge.svg"

LOCAL_REMEDY = (
    "f\"svclib is not in the Python of this kernel, {sys.executable}. In svclib's folder run '{sys.executable} -m pip "
    "install -e .' and then this cell again, or choose the kernel that has it (menu Kernel, Change Kernel).\""
)


def badge(notebook: str, address: str) -> str:
    """Markdown of the badge that opens a notebook of a GitHub repository in Colab."""
    path = address.removeprefix("https://github.com/")
    return f"[![Open In Colab]({BADGE_SVG})](https://colab.research.google.com/github/{path}/blob/main/{notebook})"


def install_cell(address: str) -> str:
    """Source of the notebooks' install cell."""
    return (
        '# @title Install { display-mode: "form" }\n'
        "import importlib.util\n"
        "import sys\n"
        "\n"
        'if importlib.util.find_spec("svclib") is None:\n'
        '    if "google.colab" not in sys.modules:\n'
        f"        problem = ImportError(\n            {LOCAL_REMEDY}\n        )\n"
        "        problem._render_traceback_ = [str(problem)].copy  # shown in place of a traceback\n"
        "        raise problem\n"
        f"    %pip install -q --no-deps git+{address}\n"
        "from svclib import notebooks\n"
        "\n"
        "notebooks.start(globals())"
    )


def repository(root: Path) -> str:
    """The address in ``pyproject.toml``."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def rewrite_notebook(notebook: dict, name: str, address: str) -> dict:
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


def rewrite_readme(text: str, address: str) -> str:
    """The README with a badge in the second column of every table row that begins with a notebook's name."""

    def row(match):
        return f"| `{match[1]}` | {badge(match[1] + '.ipynb', address)} |"

    return re.sub(r"^\| `(0\d_\w+)` \| [^|]* \|", row, text, flags=re.M)


def main(root: str = ".") -> int:
    """Rewrite badges and install cells of a clone."""
    folder = Path(root)
    address = repository(folder)
    for path in sorted(folder.glob("0*.ipynb")):
        book = rewrite_notebook(json.loads(path.read_text(encoding="utf-8")), path.name, address)
        path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = folder / "README.md"
    readme.write_text(rewrite_readme(readme.read_text(encoding="utf-8"), address), encoding="utf-8")
    print(f"badges and install cells point to {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
