"""Does installing on Colab change any preinstalled version? A resolver dry run against Colab's own package list.

    python benchmarks/colab_install.py FREEZE.txt      # `pip freeze` of a Colab runtime

Resolves the project's dependencies for Colab's Python with every preinstalled version pinned. It must resolve, and the
only additions may be the packages that the notebooks' first cell installs (jedi, which IPython 7.34 asks for and Colab
leaves out on purpose, is not installed by that cell).
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = {"swift-f0", "onnxruntime", "jaxtyping", "wadler-lindig", "jedi"}
CUDA = ("nvidia-", "cuda-", "triton")


def main(freeze: str, python: str = "3.13") -> int:
    """Print what would be added or changed; exit status 1 if anything unexpected."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = {}
    for line in Path(freeze).read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)==([^+\s]+)(\+\S+)?", line.strip())
        if match:
            pinned[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    with tempfile.TemporaryDirectory() as folder:
        wanted, held = Path(folder, "wanted.in"), Path(folder, "held.txt")
        wanted.write_text("\n".join(project["project"]["dependencies"]))
        # Colab's torch is a build of its own: its CUDA packages differ from those of the build that PyPI has
        held.write_text("\n".join(f"{n}=={v}" for n, v in pinned.items() if not n.startswith(CUDA)))
        command = ["uv", "pip", "compile", "-q", "--no-annotate", "--python-version", python]
        command += ["--python-platform", "linux", "-c", str(held), str(wanted)]
        answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        print(answer.stderr)
        return 1
    added, changed = {}, {}
    for line in answer.stdout.splitlines():
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip())
        if not match:
            continue
        name = re.sub(r"[-_.]+", "-", match[1]).lower()
        if name.startswith(CUDA):
            continue
        if name not in pinned:
            added[name] = match[2]
        elif pinned[name] != match[2]:
            changed[name] = (pinned[name], match[2])
    print(f"{len(pinned)} packages preinstalled, Python {python}")
    print("changed:", changed or "none")
    print("added:", ", ".join(f"{n} {v}" for n, v in sorted(added.items())) or "none")
    return 1 if changed or set(added) - EXPECTED else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
