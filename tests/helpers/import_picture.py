"""Draw the imports of a package as text, one line for each folder.

python tests/helpers/import_picture.py [PACKAGE_FOLDER]     prints the picture of svclib, or of another checkout's

An arrow is one module that imports another. Floors are the modules of the longest chain of imports.
"""

import ast
import collections
import functools
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "svclib"
FOLDERS = "utils audio features data models training conversion analysis notebooks cli".split()


def arrows(package: Path) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports, by dotted name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for name, path in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for target in wanted:
                while target and target not in modules:
                    target = target.rpartition(".")[0]
                if target not in ("", name, package.name):
                    found[name].add(target)
    return found


def picture(package: Path = PACKAGE) -> str:
    """The text: totals, then for every folder its size and its arrows to other folders."""
    imports = arrows(package)

    @functools.cache
    def floor(name: str) -> int:
        return 1 + max((floor(target) for target in imports[name]), default=0)

    def folder(name: str) -> str:
        parts = name.split(".")
        return parts[1] if len(parts) > 1 and (package / parts[1]).is_dir() else "."

    sizes, lines, between = collections.Counter(), collections.Counter(), collections.defaultdict(collections.Counter)
    for name, targets in imports.items():
        path = package.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        sizes[folder(name)] += path.name != "__init__.py"
        lines[folder(name)] += len(path.read_text(encoding="utf-8").splitlines())
        for target in targets:
            between[folder(name)][folder(target)] += 1
    order = [name for name in FOLDERS if name in sizes] + sorted(set(sizes) - set(FOLDERS))
    n_arrows = sum(map(len, imports.values()))
    text = [
        f"{sum(sizes.values())} modules, {sum(lines.values()):,} lines, {n_arrows} arrows, "
        f"{max(map(floor, imports))} floors",
        "",
        f"{'folder':<11}{'modules':>8}{'lines':>8}  imports from",
    ]
    for name in order:
        others = [f"{other} {between[name][other]}" for other in order if other != name and between[name][other]]
        text.append(f"{name:<11}{sizes[name]:>8}{lines[name]:>8,}  {', '.join(others) or '-'}")
    return "\n".join(text)


if __name__ == "__main__":
    print(picture(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE))
