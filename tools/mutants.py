"""Mutation tests: which small faults, put into changed lines one at a time, do the tests of a module notice?

Run in a clone by an environment that has cosmic-ray (``make mutants`` makes one); tests run in ``.venv``. Nothing in
the clone is changed: mutants are made in a worktree of their own, of the working tree as it is. Each is shown to the
tests that execute its lines (measured once, without mutants, over the quick tests without a browser), one in a line
that runs at import to the tests of its module.

    make mutants ARGS="--since main --sample 40"
    make mutants ARGS="--module svclib/training/sweep.py --since none --sample 20"
"""

import argparse
import ast
import fnmatch
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv" / "bin" / "python"
# Modules that are mutated and the tests that have to notice; the last pattern that fits counts.
TESTS = {
    "svclib/training/*.py": "tests/training tests/drive",
    "svclib/training/api.py": "tests/training/test_training.py tests/models/test_diffusion_training.py "
    "tests/training/test_base_model.py",
    "svclib/training/checkpoint*.py": "tests/training/test_resume.py tests/security/test_untrusted_folders.py",
    "svclib/training/resume.py": "tests/models/test_diffusion_training.py tests/training/test_base_model.py "
    "tests/training/test_resume.py",
    "svclib/training/run_l*.py": "tests/training/test_one_run.py tests/training/test_training.py tests/drive",
    "svclib/training/session.py": "tests/training/test_training.py",
    "svclib/training/sweep.py": "tests/training/test_sweep.py",
    "svclib/training/trainer.py": "tests/training/test_training.py tests/training/test_resume.py tests/training",
    "svclib/models/instrument*.py": "tests/models/test_instrument.py tests/models/test_blend.py",
    "svclib/models/diffusion/*.py": "tests/models/test_diffusion.py tests/models/test_distillation.py tests/models",
    "svclib/models/diffusion/s*.py": "tests/models/test_samplers.py tests/models/test_distillation.py",
    "svclib/conversion/*.py": "tests/conversion/test_pipeline.py tests/conversion/test_controls.py tests/conversion",
    "svclib/conversion/ab_compare.py": "tests/conversion/test_pipeline.py tests/notebooks/test_sampling_controls.py",
    "svclib/conversion/cover.py": "tests/conversion/test_cover.py",
    "svclib/conversion/diffwave_files.py": "tests/conversion/test_diffwave_files.py",
    "svclib/conversion/evaluate.py": "tests/cli/test_cli.py tests/conversion",
    "svclib/conversion/f0_edit.py": "tests/conversion/test_f0_edit.py",
    "svclib/conversion/live.py": "tests/conversion/test_live.py",
    "svclib/conversion/metrics.py": "tests/conversion/test_metrics.py",
    "svclib/conversion/speaker_similarity.py": "tests/conversion/test_speaker_similarity.py",
}
MOST_TESTS = 80  # that one mutant is shown to, those of its module first
# Not faults of behaviour: the | of annotations, decorators of registries and dataclasses that everything needs
NOISE = re.compile("core/(ReplaceBinaryOperator_BitOr_.*|RemoveDecorator|ExceptionReplacer)")


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """Output of a git command."""
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def changed_lines(since: str, module: str) -> set[int] | None:
    """Numbers of the lines of a module that changed since a revision; None: every line counts."""
    if since == "none":
        return None
    heads = re.findall(r"^@@ \S+ \+(\d+)(?:,(\d+))? @@", git("diff", "-U0", since, "--", module), re.M)
    return {line for start, n in heads for line in range(int(start), int(start) + int(n or 1))}


def tests_of(module: str) -> str | None:
    """The tests of a module, None for one that is not mutated."""
    found = next((tests for pattern, tests in reversed(TESTS.items()) if fnmatch.fnmatch(module, pattern)), None)
    return found and f"tests/test_settings.py {found}"


def tests_by_line(tree: Path, python: str, modules: list[str]) -> dict[str, dict[str, list[str]]]:
    """File -> line -> tests that execute it ("" where it runs at import); stops where a test fails without mutants."""
    measured = "-m 'not slow and not browser' -n 2 --dist loadfile --cov=svclib --cov-context=test --cov-report="
    tests = f"{python} -m pytest -q -p no:cacheprovider {measured}"
    if subprocess.run(shlex.split(tests), cwd=tree).returncode:
        raise SystemExit("These tests fail without any mutant; mend them first.")
    report = f"{python} -m coverage json -q --show-contexts -o lines.json --include={','.join(modules)}"
    subprocess.run(shlex.split(report), cwd=tree, check=True)
    files = json.loads((tree / "lines.json").read_text())["files"]
    return {name: file["contexts"] for name, file in files.items()}


def statement_lines(text: str, line: int) -> range:
    """The lines of the statement that holds a line; of a function, a loop or the like its head."""
    around = [x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.stmt) and x.lineno <= line <= x.end_lineno]
    innermost = max(around, key=lambda x: x.lineno, default=None)
    if innermost is None:
        return range(line, line + 1)
    body = getattr(innermost, "body", None)
    return range(innermost.lineno, body[0].lineno if body else innermost.end_lineno + 1)


def run_tests(module: str, python: str, tests: str) -> int:
    """Run the tests of the mutant that lies in the working folder; the status is that of pytest."""
    original, changes = (git(*x, cwd=Path.cwd()) for x in (["show", f"HEAD:{module}"], ["diff", "-U0", "--", module]))
    by_line, found = json.loads(Path("tests_by_line.json").read_text()), set()
    for start in map(int, re.findall(r"^@@ -(\d+)", changes, re.M)):
        found |= {test for line in statement_lines(original, start) for test in by_line.get(str(line), [])}
    own = shlex.split(tests)
    others = {test.rpartition("|")[0] for test in found}
    chosen = sorted(others, key=lambda test: (not test.startswith(tuple(own)), test))[:MOST_TESTS]
    chosen = own if not found or "" in found else chosen
    Path("chosen_tests").write_text("\n".join(chosen))
    return subprocess.run([python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "@chosen_tests"]).returncode


def mutate(tree: Path, module: str, by_line: dict[str, list[str]], o: argparse.Namespace) -> list[WorkResult]:
    """Results of a sample of the mutants of one module's changed lines, in a copy of the working tree."""
    lines = changed_lines(o.since, module)
    tests = o.tests or tests_of(module)
    command = shlex.join([sys.executable, __file__, "--run-tests", module, str(o.python), tests])
    (tree / "mutants.toml").write_text(
        f"[cosmic-ray]\nmodule-path = {module!r}\ntimeout = {o.timeout}\nexcluded-modules = []\n"
        f'test-command = {json.dumps(command)}\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    session = tree / "mutants.sqlite"
    session.unlink(missing_ok=True)
    ray = Path(sys.executable).with_name("cosmic-ray")
    subprocess.run([ray, "init", "mutants.toml", session.name], cwd=tree, check=True)
    with use_db(session, WorkDB.Mode.open) as db:
        items = sorted(db.pending_work_items, key=lambda item: (item.mutations[0].start_pos, item.job_id))
        wanted = [
            item
            for item in items
            for m in item.mutations[:1]
            if not NOISE.fullmatch(m.operator_name)
            and (lines is None or lines & set(range(m.start_pos[0], m.end_pos[0] + 1)))
        ]
        wanted = random.Random(o.seed).sample(wanted, min(o.sample, len(wanted)))
        left_out = [item.job_id for item in items if item not in wanted]
        db.set_multiple_results(left_out, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    print(f"{module}: {len(wanted)} of {len(items)} mutants, in import lines shown to {tests}", flush=True)
    if wanted:
        (tree / "tests_by_line.json").write_text(json.dumps(by_line))
        subprocess.run([ray, "exec", "mutants.toml", session.name], cwd=tree, check=True)
    with use_db(session, WorkDB.Mode.open) as db:
        return [result for _, result in db.completed_work_items if result.worker_outcome != WorkerOutcome.SKIPPED]


def main(arguments: list[str] | None = None) -> int:
    """Print the survivors and the score; status 1 below the wanted one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", default="HEAD~1", help="mutate lines changed since this revision; none: every line")
    parser.add_argument("--module", action="append", help="only this one; repeat for more")
    parser.add_argument("--sample", type=int, default=30, help="mutants of each module, drawn at random (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--python", default=PYTHON, help="that runs the tests (.venv's)")
    parser.add_argument("--tests", help="for lines that run at import, instead of the module's, as for pytest")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds; a mutant that takes longer is noticed")
    parser.add_argument("--at-least", type=float, default=90.0, help="wanted score in percent")
    parser.add_argument("--run-tests", nargs=3, help=argparse.SUPPRESS)  # of each mutant, in its worktree
    o = parser.parse_args(arguments)
    if o.run_tests:
        return run_tests(*o.run_tests)
    # The copy lies elsewhere; tests on real recordings that are skipped notice nothing.
    os.environ.setdefault("SVCLIB_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    modules = o.module or [m for m in git("ls-files", "svclib/*.py").splitlines() if tests_of(m)]
    modules = [m for m in modules if changed_lines(o.since, m) != set()]
    noticed, survived = 0, 0
    with tempfile.TemporaryDirectory(prefix="svclib-mutants-") as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", str(tree), git("stash", "create") or "HEAD")  # uncommitted changes too
        try:
            by_line = tests_by_line(tree, str(o.python), modules) if modules else {}
            for module in modules:
                for result in mutate(tree, module, by_line.get(module, {}), o):
                    noticed += result.test_outcome == TestOutcome.KILLED
                    if result.test_outcome == TestOutcome.SURVIVED:
                        survived += 1
                        print(f"not noticed:\n{result.diff}\n", flush=True)
        finally:
            git("worktree", "remove", "--force", str(tree))
    if not noticed + survived:
        print("There are no mutants: nothing changed in the modules that are mutated.")
        return 0
    score = 100 * noticed / (noticed + survived)
    print(f"{noticed} of {noticed + survived} mutants were noticed: {score:.0f} %.")
    return int(score < o.at_least)


if __name__ == "__main__":
    sys.exit(main())
