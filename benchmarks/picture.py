"""The picture of the README, from what the demo left: `python benchmarks/picture.py svclib_demo docs/picture.png`."""

import sys
from pathlib import Path

from svclib.analysis import plots
from svclib.audio import io as audio
from svclib.utils import atomic_store


def main(demo: str, out: str) -> None:
    """Song and result beside each other."""
    base = Path(demo)
    song, result = next((base / "examples").glob("*.wav")), next((base / "output").glob("*.wav"))
    titles = ("a song by one synthetic singer", "the same, rendered by an instrument trained on the other")
    sounds = [audio.read(path, 16000) for path in (song, result)]
    pairs = zip(titles, sounds, strict=True)
    figure = plots.compare_spectrograms([(title, s.samples, s.sample_rate_hz, None) for title, s in pairs])
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    atomic_store.commit_file(Path(out), lambda part: figure.savefig(part, format="png", dpi=110))


if __name__ == "__main__":
    main(*sys.argv[1:])
