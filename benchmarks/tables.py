"""Fill the marked tables of docs/figures.md and benchmarks/README.md from ``benchmarks/results/*.json``.

    python benchmarks/tables.py            # writes; --check only prints which file differs, with status 1

A result is one JSON per measurement: ``what`` was measured, the ``command``, ``date`` and ``machine``, and ``figures``:
rows of what, obtained, aim (empty where there is none), as text. A table stands between two comments::

    <!-- figures: NAME NAME -->
    <!-- end of figures -->
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/figures.md", "benchmarks/README.md")
MARKED = re.compile(r"(<!-- figures: ([\w ]+) -->\n).*?(<!-- end of figures -->)", re.S)


def table(name: str) -> str:
    """The Markdown of one result, by the stem of its file."""
    result = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    rows = ["| | obtained | aim |", "|---|---|---|"] + [f"| {' | '.join(row)} |" for row in result["figures"]]
    about = f"{result['what']} ({result['machine']}, {result['date']}): `{result['command']}`"
    return "\n".join([about, "", *rows, ""]) + "\n"


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(lambda m: m[1] + "\n" + "".join(table(name) for name in m[2].split()) + m[3], text)


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` only compare."""
    differ = 0
    for page in PAGES:
        old = (ROOT / page).read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            differ = 1
            print(f"{page}: {'its tables differ from the results' if arguments else 'filled'}")
            if not arguments:
                (ROOT / page).write_text(new, encoding="utf-8")
    return differ if arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
