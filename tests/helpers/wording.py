"""Search svclib for words of a private vocabulary, where the field has its own terms.

python tests/helpers/wording.py [FOLDER ...]     prints every place in these folders of svclib (all by default)

Checked are the names that the code binds (functions, classes, arguments, attributes, variables) and the docstrings.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "svclib"
INSTEAD = {
    "walk walks walked walking": "sampling run, sampler step",
    "hear hears heard hearing listener listeners": "measure, classifier, receive as input",
    "sung sings sang": "render, convert, synthesize, recording",
    "told tell tells telling said says": "given, report, message",
    "stranger strangers": "untrusted",
    "stretch stretches stretched": "excerpt, segment",
    "way ways": "variant, option, method",
}
BANNED = {word: instead for words, instead in INSTEAD.items() for word in words.split()}
ALLOWED = re.compile(r"(?i)time[- ]stretch\w*|\bDTW\b[^.]*?\bstretch\w*")  # the operation of that name
QUESTION = re.compile(r"(Who|Whom|Whose|What|Whether|Where|Which|Why|How)\b")


def parts(name: str) -> list[str]:
    """The words of an identifier: ``walkedSteps_of`` -> walked, steps, of."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def bound_names(node: ast.AST) -> list[str]:
    """Names that this node of the syntax tree gives to something."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    if isinstance(node, ast.alias):
        return [node.asname or ""]
    return []


def problems(path: Path) -> Iterator[str]:
    """One line for each place in a Python file."""
    where = path.relative_to(PACKAGE.parent).as_posix()
    if set(parts(path.stem)) & BANNED.keys():
        yield f"{where}: the module's name"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in bound_names(node):
            for word in BANNED.keys() & set(parts(name)):
                yield f"{where}:{node.lineno}: '{name}': '{word}'; use {BANNED[word]}"
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        first = node.body[0].lineno
        if head := QUESTION.match(text):
            yield f"{where}:{first}: the docstring begins with '{head[0]}'; begin with a noun or a verb"
        for number, line in enumerate(ALLOWED.sub(lambda found: "\n" * found[0].count("\n"), text).splitlines()):
            for word in re.findall(r"(?<![\w-])[a-z]+(?![\w-])", line.lower()):
                if word in BANNED:
                    yield f"{where}:{first + number}: docstring: '{word}'; use {BANNED[word]}"


def files(folder: str) -> list[Path]:
    """The Python files of a folder of svclib; ``.`` means the files beside the folders."""
    return sorted(PACKAGE.glob("*.py") if folder == "." else (PACKAGE / folder).rglob("*.py"))


def folders() -> list[str]:
    """The folders of svclib, and ``.``."""
    return [".", *sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))]


if __name__ == "__main__":
    for folder in sys.argv[1:] or folders():
        found = [line for path in files(folder) for line in problems(path)]
        print(*found, f"{folder}: {len(found)}", sep="\n")
