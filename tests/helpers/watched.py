"""A journey under watch: commands on small data, and a JSON of what they wrote and whom they called.

    python tests/helpers/watched.py quick|whole FOLDER REPORT.json

Python tells an audit hook of every file that is opened to be written, made, renamed or removed, and of every address
that is looked up, connected to or listened at; none of those gets through. What other than Python sends is counted by
the system, where this runs in a network of its own that leads nowhere.
"""

import json
import os
import socket
import sys
from pathlib import Path

# the events of files, with the place of ``dir_fd`` among their arguments
WRITES = {"os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2}
WRITES |= {"os.truncate": None, "os.utime": 3, "os.chmod": 2}
CALLS = (
    "socket.connect",
    "socket.bind",
    "socket.sendto",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
)
written, called = set(), []


def _watch(event, arguments):
    if event in CALLS:
        called.append(f"{event} {arguments[1:]}")
        raise OSError(f"cut off: {event} {arguments[1:]}")
    if event == "open":
        path, mode, flags = arguments
        for_writing = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if (for_writing or set(mode or "") & set("wax+")) and not isinstance(path, int):
            written.add(os.path.abspath(os.fsdecode(path)))
    elif event in WRITES:
        for i, path in enumerate(arguments[: 2 if event in ("os.rename", "os.link") else 1]):
            folder = arguments[WRITES[event] + i] if WRITES[event] and len(arguments) > WRITES[event] + i else -1
            if isinstance(folder, int) and folder >= 0:
                if not os.path.isdir("/proc/self/fd"):
                    continue  # this system does not say which folder it is; its own name was seen when it was made
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
            if isinstance(path, (str, bytes, os.PathLike)):
                written.add(os.path.abspath(os.fsdecode(path)))


def packets() -> int | None:
    """What was sent so far or had nowhere to go, by the system's count; None where it counts nothing."""
    try:
        lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:")]
        counts = dict(zip(*lines, strict=True))
        return int(counts["OutRequests"]) + int(counts["OutNoRoutes"])
    except (OSError, ValueError, KeyError):
        return None


def journey(folder: Path) -> None:
    """From two short recordings to a lesson, by every command that a person without a cluster needs."""
    from svclib.__main__ import main
    from svclib.audio import io as audio
    from svclib.data import singers

    score = singers.Score(tuple(singers.Note(n, 0.8, s) for n, s in ((60, "la"), (64, "sa"), (62, "na"))))
    for seed, name in enumerate(("one", "two")):
        (folder / "voice").mkdir(exist_ok=True)
        rendered = singers.render("aria", score, seed=seed)
        audio.write(folder / "voice" / f"{name}.wav", rendered.audio, rendered.sample_rate_hz)
    song, presets = folder / "voice" / "two.wav", ["--config", "diffusion_small", "--config", "tiny"]
    sings = ["--instrument", folder / "aria.zip", "--input", song]
    for command in (
        ["doctor", "--audio", folder / "voice"],
        ["prepare", "--audio", folder / "voice", "--out", folder / "data", *presets],
        ["train", "--dataset", folder / "data", "--run", folder / "run", *presets, "--steps", "3"],
        ["export", "--run", folder / "run", "--out", folder / "aria.zip"],
        ["info", folder / "aria.zip"],
        ["convert", *sings, "--out", folder / "rendered.wav", "--key", "auto"],
        ["evaluate", "--reference", song, "--converted", folder / "rendered.wav", "--json", folder / "figures.json"],
        ["trace", *sings, "--out", folder / "lesson.html", "--seconds", "1", "--steps", "8"],
    ):
        status = main([str(part) for part in command])
        assert status == 0, (command, status)


def whole(folder: Path) -> None:
    """The demo too."""
    from svclib.cli import demo

    small = {"minutes": 1, "preset": ("ddsp_small", "tiny"), "corpus_minutes": 0.3}
    demo.Demo(folder / "demo", **small, log=print).run()
    journey(folder)


if __name__ == "__main__":
    what, chosen, report = sys.argv[1:]
    before = packets()
    socket.gethostname = lambda: "janes-machine-7"  # that no shared file may hold
    sys.addaudithook(_watch)
    try:
        {"quick": journey, "whole": whole}[what](Path(chosen))
    finally:
        files, calls, after = sorted(written), list(called), packets()
        sent = None if before is None else after - before
        Path(report).write_text(json.dumps({"written": files, "called": calls, "packets": sent}), encoding="utf-8")
