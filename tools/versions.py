"""Test svclib with the oldest and the newest packages that pyproject.toml allows, and with other Pythons that are here.

Makes an environment for each in ``.venv-versions``, runs the same tests in all and in this one, and prints what
differs: versions that cannot be installed together, tests that fail there and not here. ``make versions`` calls it.

    python tools/versions.py                             # oldest, newest, and python3.12, 3.13, 3.14 of the PATH
    python tools/versions.py --only oldest --keep torch  # with the torch that is installed here
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".venv-versions"
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
UV = shutil.which("uv")
PYTHONS = ("python3.12", "python3.13", "python3.14")
# Every package is used by one: reading, features, each kind of model, training, files, panels, plots, commands.
TESTS = (
    "tests/audio tests/features tests/models tests/training/test_training.py tests/training/test_sweep.py tests/utils "
    "tests/conversion tests/notebooks/test_panels.py tests/analysis/test_plots.py tests/cli tests/test_compatibility.py"
)
TOOLS = (
    "pytest",
    "pytest-timeout",
    "beartype",
    "mir_eval",
    "diffusers>=0.35",
    "transformers>=4.56",
    "faster-whisper",
    "setuptools",
    "wheel",
)


def make(name: str, python: str, resolution: str, keep: list[str]) -> Path:
    """An environment with svclib's packages, resolved by uv; those to keep have the version of this one."""
    folder = HOME / name
    subprocess.run([UV, "venv", "-q", "--clear", "--seed", "--python", python, folder], check=True)
    limits = folder / "constraints.txt"
    limits.write_text("".join(f"{package}=={importlib.metadata.version(package)}\n" for package in keep))
    install = [UV, "pip", "install", "-q", "--python", folder / "bin" / "python"]
    subprocess.run([*install, "-c", limits, "--resolution", resolution, "-r", ROOT / "pyproject.toml"], check=True)
    freeze = [UV, "pip", "freeze", "--python", folder / "bin" / "python"]
    found = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout.splitlines()
    own = {re.match(r"[\w-]+", line)[0] for line in DEPENDENCIES}
    limits.write_text("\n".join(line for line in found if line.partition("==")[0] in own) + "\n")
    subprocess.run([*install, "-c", limits, *TOOLS], check=True)  # those of the tests may be of any version
    subprocess.run([*install, "--no-deps", "-r", ROOT / "requirements-nodeps.txt"], check=True)
    subprocess.run([*install, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    return folder / "bin" / "python"


def outcomes(python: Path | str, name: str, tests: list[str]) -> dict[str, str]:
    """The outcome of each test in an environment: passed, failed or skipped."""
    report = HOME / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(HOME / f"{name}.log", "w") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if not report.exists():
        return {"the tests did not run; see " + log.name: "failed"}
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the differences; status 1 if a test fails elsewhere that passes here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="oldest, newest or a Python's name; repeat for more")
    parser.add_argument("--keep", action="append", default=[], help="a package in the version that is installed here")
    parser.add_argument("--tests", default=TESTS, help="files, folders and options of pytest")
    o = parser.parse_args(arguments)
    if UV is None:
        raise SystemExit("uv, which resolves the versions, is not on the PATH; call make versions, which installs it.")
    plans = {"oldest": (sys.executable, "lowest-direct"), "newest": (sys.executable, "highest")}
    plans |= {name: (path, "highest") for name in PYTHONS if (path := shutil.which(name))}
    print(f"Not here: {', '.join(name for name in PYTHONS if name not in plans) or 'nothing'}.")
    HOME.mkdir(exist_ok=True)
    here, status = None, 0
    for name, (python, resolution) in plans.items():
        if o.only and name not in o.only:
            continue
        try:
            there = outcomes(make(name, python, resolution, o.keep), name, o.tests.split())
        except subprocess.CalledProcessError:
            print(f"{name}: its packages cannot be installed together.")
            status = 1
            continue
        here = here or outcomes(sys.executable, "here", o.tests.split())
        worse = [test for test, outcome in there.items() if outcome == "failed" and here.get(test) != "failed"]
        other = [test for test, outcome in there.items() if outcome != here.get(test) and test not in worse]
        passed = sum(outcome == "passed" for outcome in there.values())
        print(f"{name}: {passed} of {len(there)} tests pass, {len(worse)} fail that pass here.")
        print("".join(f"  fails: {test}\n" for test in worse), end="")
        print("".join(f"  is {there[test]} there, {here.get(test)} here: {test}\n" for test in other), end="")
        status |= bool(worse)
    return status


if __name__ == "__main__":
    sys.exit(main())
