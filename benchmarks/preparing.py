"""Threads or processes for measuring recordings? Seconds for the same segments, in one run.

    python benchmarks/preparing.py DATA [--files N]

Segments of ``voices/kathleen_sung`` are measured (``segments.measure``) by one thread, two threads and two processes
that were started afresh ("spawn", the only method that is safe beside torch). The first two are measured again at the
end: their spread is that of the machine. For the processes the time to start them is given apart.
"""

import argparse
import concurrent.futures
import multiprocessing
import time
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.data import segments, shards
from svclib.utils import config

VOICE = "voices/kathleen_sung"


def measured(job) -> dict:
    """One segment."""
    return segments.measure(*job)


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--files", type=int, default=24)
    arguments = parser.parse_args()
    for preset in ("diffusion_small", "ddsp_small"):
        settings = config.load([preset]).features
        jobs = []
        for path in sorted((arguments.data / VOICE).glob("*.flac"))[: arguments.files]:
            samples = np.asarray(audio.read(path, sample_rate_hz=settings.sample_rate_hz).samples)
            samples = (samples * shards.FULL_SCALE).astype(np.int16)
            jobs.append((samples, (0, len(samples), 0, len(samples)), settings))
        seconds = sum(len(job[0]) for job in jobs) / settings.sample_rate_hz
        measured(jobs[0])
        took = {}
        for round_ in ("", ", again"):
            for n in (1, 2):
                with concurrent.futures.ThreadPoolExecutor(n) as pool:
                    began = time.perf_counter()
                    list(pool.map(measured, jobs))
                    took[f"{n} threads{round_}"] = time.perf_counter() - began
            if not round_:
                began = time.perf_counter()
                spawn = multiprocessing.get_context("spawn")
                with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
                    list(pool.map(measured, [jobs[0]] * 4))
                    took["2 processes, to start"] = time.perf_counter() - began
                    began = time.perf_counter()
                    list(pool.map(measured, jobs))
                    took["2 processes"] = time.perf_counter() - began
        print(f"{preset}, {len(jobs)} segments, {seconds:.0f} s of sound, in seconds:")
        print("  " + "; ".join(f"{name} {value:.2f}" for name, value in took.items()), flush=True)


if __name__ == "__main__":
    main()
