"""All measurements, one after another: `make bench`. Takes about half an hour; results go to `bench/` as text.

Recordings come from `shared/data` beside the project, or from the folder that `SVCLIB_TEST_DATA` names.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SVCLIB_TEST_DATA", ROOT.parent / "shared" / "data"))
OUT = ROOT / "bench"
MEASUREMENTS = {
    "f0": ["-m", "pytest", "tests/features/test_f0.py", "-k", "annotated", "-s", "-m", "slow or not slow"],
    "singing": ["benchmarks/singing.py", str(DATA), str(OUT / "singing"), "--minutes", "15"],
    "diffwave_package": ["-m", "pip", "install", "--no-deps", "--target", str(OUT / "diffwave"), "diffwave==0.1.7"],
    "diffwave_speed": ["benchmarks/diffwave_speed.py", str(OUT / "diffwave"), "--seconds", "0.5", "--training"],
    "diffusion_speed": ["benchmarks/diffusion_speed.py"],
    "watching": ["benchmarks/watching.py"],
}


def main(names: list[str]) -> int:
    """Run the named measurements, or all; exit status 1 if one fails."""
    if not DATA.is_dir():
        print(f"There are no recordings at {DATA}; set SVCLIB_TEST_DATA to their folder.")
        return 1
    unknown = set(names) - set(MEASUREMENTS)
    if unknown:
        print(f"There is no measurement '{unknown.pop()}'; there are {', '.join(MEASUREMENTS)}.")
        return 1
    OUT.mkdir(exist_ok=True)
    failed = []
    for name in names or MEASUREMENTS:
        print(f"{name}: {' '.join(MEASUREMENTS[name])}", flush=True)
        with open(OUT / f"{name}.txt", "w") as log:
            command = [sys.executable, *MEASUREMENTS[name]]
            ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        failed += [name] if ended.returncode else []
        print(f"  {'FAILED' if ended.returncode else 'done'}: {OUT / name}.txt", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
