"""The README's picture of the lesson, of the bundled example: `python benchmarks/lesson_picture.py docs/lesson.png`."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import browsing

from svclib.analysis import lesson, player
from svclib.utils import atomic_store


def main(out: str) -> None:
    """Page 4 in a headless Chromium, in few enough colours to stay small."""
    with tempfile.TemporaryDirectory() as folder, browsing.browser(1100, 980) as tab:
        tab.goto(player.export(lesson.example(), Path(folder, "lesson.html")).as_uri())
        while not tab.evaluate("Boolean(window.player && window.player.ready)"):
            tab.wait_for_timeout(20)
        tab.evaluate("window.lesson.show(3); window.player.set({step: Math.round(window.player.run.t.length * .45)})")
        tab.wait_for_timeout(200)
        shot = Path(folder, "shot.png")
        tab.screenshot(path=str(shot))
        picture = Image.open(shot).convert("RGB").resize((880, 784), Image.LANCZOS)
    picture = picture.quantize(128, dither=Image.Dither.NONE)
    atomic_store.commit_file(Path(out), lambda part: picture.save(part, format="PNG", optimize=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
