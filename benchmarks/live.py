"""Waiting time after Run: pictures of a sampling run in JupyterLab, in a headless Chromium, by its own clock.

    python benchmarks/live.py [--instrument NAME.zip] [--song FILE] [--seconds S] [--steps N] [--repeats N]

Without an instrument a fresh one of the size of diffusion_small is made, without a song a synthetic singer's. The real
study panel is opened from a notebook; the page writes down when each picture and each text of the progress bar arrived
after the button was pressed. The first run opens the instrument and measures the song, the others find both ready.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import browsing
from panels import STATISTICS

from watching import small_model


def sentence(name: str, seen: dict) -> str:
    """The waits of one run in words."""
    pictures = np.array(seen["pictures"][:-1])  # the last change takes them away
    arrived = np.sort(np.array([*pictures, *seen["progress"]]))
    gaps = np.diff(arrived[arrived <= pictures[-1]])
    return (
        f"{name}: first picture after {pictures[0]:.0f} ms; until the run ended at {pictures[-1]:.0f} ms "
        f"{len(pictures) - 1} more, median {np.median(np.diff(pictures)):.0f} ms apart, and something new at least "
        f"every {gaps.max():.0f} ms; drawn and free after {seen['idle']:.0f} ms"
    )


def prepared(home: Path, arguments) -> None:
    """The folder with an instrument and a song."""
    from svclib.models import instrument
    from svclib.notebooks import prepare
    from svclib.utils import workspace

    base = workspace.base_folder(base=home)
    if arguments.instrument:
        shutil.copy(arguments.instrument, base.instruments)
    else:
        model = small_model(7, 192)
        statistics = {**STATISTICS, "log_mel": {"min": [-11.6] * 80, "max": [1.5] * 80}}
        instrument.save(
            base.instruments / "fresh.zip", model, model.features, statistics, created="2026-11-21", name="fresh"
        )
    if arguments.song:
        shutil.copy(arguments.song, base.examples)
    else:
        prepare.songs(base)


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instrument", type=Path)
    parser.add_argument("--song", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--picture", type=Path, help="a screenshot in the middle of a run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared(folder / "home", arguments)
        browsing.panel_notebook(folder, "study.ipynb", folder / "home", "ablation", "AblationPanel(base)")
        with browsing.server(folder) as url, browsing.browser() as page:
            seen = browsing.watch(page, url)
            browsing.open_in_lab(page, url, "study.ipynb")
            browsing.run_all_in_lab(page)
            page.wait_for_selector("button.t-study-run:not([disabled])")
            browsing.set_number(page, "t-study-seconds", arguments.seconds)
            browsing.set_number(page, "t-study-steps", arguments.steps)
            for i in range(arguments.repeats):
                name = "a further run" if i else "first run, nothing open"
                print(sentence(name, browsing.run_study(page)), flush=True)
            page.locator(".t-study-probe input").check()
            print(sentence("with the influence of three factors", browsing.run_study(page)), flush=True)
            found = browsing.cancel_study(page)
            print(f"Cancel: reported after {found['said']:.0f} ms, free after {found['free']:.0f} ms ({found['text']})")
            if arguments.picture:
                browsing.press(page, "t-study-run")
                page.wait_for_timeout(1500)
                page.screenshot(path=str(arguments.picture))
            print(f"errors {seen['errors']}, requests to anywhere else {seen['outside']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
