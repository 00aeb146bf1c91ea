"""Where segments are measured: by processes of this machine, or by a dask.distributed cluster that runs already.

Recordings are decoded here in every case and segments go to the workers as samples: no worker needs to see a folder,
and the results are the same bytes wherever they were measured. A segment whose worker is lost is measured again by
another. A scheduler runs what it is sent by anybody who reaches it: keep it inside a network you trust.
"""

import concurrent.futures
import contextlib
import logging
import os
import signal
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from svclib.data import manifest, segments
from svclib.features.extract import FeatureSettings
from svclib.utils.errors import StorageError

CONNECT_S = 10.0
PATIENCE_S = 60.0  # how long a cluster may be without workers
BEGIN_S = 60.0  # work that lasts longer gets processes, which take seconds of all cores to start
MOST_PROCESSES = 16
IDLE_S = 60.0  # a worker that nobody asks for anything leaves, also where this process was killed
MOST_AHEAD = 64  # segments under way; one of 160 s at 44.1 kHz is 14 MB in the scheduler's memory
Cut = tuple[int, int, int, int]
_KEPT = "What is finished is kept: start it again and it goes on."


@contextlib.contextmanager
def opened(executor: str | None, tell: Callable[[str], None]) -> Iterator[Any]:
    """What measures segments: ``submit`` begins one, ``ahead`` is how many may be under way.

    Work that nobody waits for any more is dropped at the end.

    Args:
        executor: ``dask://HOST:PORT`` of a scheduler, or None for this machine: a pool of processes, one for each core,
            is started beside the work once that has taken ``BEGIN_S``. Until it is ready two threads of this process
            measure, on a single core one, and there it stays so.
        tell: Called with a text while the cluster is waited for; what it raises ends the waiting.

    Yields:
        ``submit(samples, cut, settings)`` begins ``segments.measure`` and returns a call that waits for its arrays.

    Raises:
        StorageError: for another executor, a missing package, or a scheduler that does not answer.
    """
    if executor is not None:
        with _client(executor) as client:
            yield _Dask(client, executor, tell)
        return
    with contextlib.closing(_Here()) as here:
        yield here


class _Here:
    """Threads of this process, and when the work lasts a pool of processes in their place."""

    def __init__(self):
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = concurrent.futures.ThreadPoolExecutor(min(2, self.cores))
        self.processes = self.ready = None
        self.ahead, self.since = 3, time.monotonic()
        self.under_way: set[concurrent.futures.Future] = set()

    def submit(self, samples: np.ndarray, cut: Cut, settings: FeatureSettings) -> Callable[[], dict]:
        """Begin ``segments.measure``; the call returned waits for its arrays."""
        try:
            future = self.workers().submit(segments.measure, samples, cut, settings)
        except concurrent.futures.BrokenExecutor:
            self.ahead, self.ready = 0, None
            future = self.threads.submit(segments.measure, samples, cut, settings)
        self.under_way.add(future)
        return lambda: self.result(future, samples, cut, settings)

    def workers(self) -> concurrent.futures.Executor:
        """Who measures the next segment."""
        if self.processes is None and self.cores > 1 and self.ahead and time.monotonic() - self.since >= BEGIN_S:
            self.processes = _pool(self.cores)
            self.ready = self.processes.submit(manifest.versions)  # a worker answers when it has loaded svclib
        if self.ready is None or not self.ready.done() or self.ready.exception():
            return self.threads
        self.ahead = self.ahead and min(MOST_AHEAD, self.cores + 2)
        return self.processes

    def result(self, future, samples: np.ndarray, cut: Cut, settings: FeatureSettings) -> dict:
        """Its arrays; where memory was short or a worker died of it, measured here with nothing beside it, as all that
        follow."""
        self.under_way.discard(future)
        try:
            return future.result()
        except (MemoryError, concurrent.futures.BrokenExecutor):
            concurrent.futures.wait(self.under_way)
            self.ahead, self.ready = 0, None
        try:
            return segments.measure(samples, cut, settings)
        except MemoryError:
            raise StorageError(
                f"There is too little memory to measure a segment of {(cut[3] - cut[2]) / settings.sample_rate_hz:.0f} "
                f"seconds. Close other programs, or take a machine with more. {_KEPT}"
            ) from None

    def close(self) -> None:
        """Drop what nobody waits for any more."""
        if self.processes is not None:
            self.processes.shutdown(kill_workers=True)
        self.threads.shutdown(wait=True, cancel_futures=True)


def _pool(n: int) -> concurrent.futures.Executor:
    """Processes that load nothing of a caller's script and leave by themselves; librosa brings joblib."""
    from joblib.externals.loky import ProcessPoolExecutor

    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return ProcessPoolExecutor(min(MOST_PROCESSES, n), timeout=IDLE_S, initializer=_left_alone, env=one_thread)


def _left_alone() -> None:
    """In a worker: Ctrl-C in the terminal is for the process that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Dask:
    def __init__(self, client, where: str, tell: Callable[[str], None]):
        self.client, self.where, self.tell = client, where, tell
        self.versions = manifest.versions()

    @property
    def ahead(self) -> int:
        """Two more than there are threads now: workers may come and go."""
        return min(MOST_AHEAD, 2 + self.n_threads())

    def n_threads(self) -> int:
        try:
            return sum(self.client.nthreads().values())
        except Exception as error:
            raise _lost(self.where, error) from error

    def submit(self, samples: np.ndarray, cut: Cut, settings: FeatureSettings) -> Callable[[], dict]:
        try:
            future = self.client.submit(_measure_there, self.versions, samples, cut, settings, pure=False)
        except Exception as error:
            raise _lost(self.where, error) from error
        return lambda: self.result(future)

    def result(self, future) -> dict:
        from distributed import KilledWorker

        since = time.monotonic()
        while True:
            try:
                return future.result(timeout=1.0)
            except TimeoutError:
                if self.n_threads():
                    since = time.monotonic()
                    self.tell("waiting for the cluster")
                elif time.monotonic() - since < PATIENCE_S:
                    self.tell("the cluster has no worker now; waiting for one")
                else:
                    raise StorageError(
                        f"The cluster at {self.where} has had no worker for {PATIENCE_S:.0f} seconds. Start workers "
                        f"with `dask worker {self.where.removeprefix('dask://')}`. {_KEPT}"
                    ) from None
            except KilledWorker as error:
                raise StorageError(
                    f"Several workers of {self.where} were lost one after the other on the same segment. Give each "
                    f"more memory, or fewer threads. {_KEPT}"
                ) from error
            except ImportError as error:
                raise _foreign(self.where, error) from error
            except ValueError:  # of a recording, or our own
                raise
            except RuntimeError as error:
                if "deserialization" in str(error):
                    raise _foreign(self.where, error) from error
                raise
            except (OSError, concurrent.futures.CancelledError) as error:
                raise _lost(self.where, error) from error


def _measure_there(expected: dict[str, str], samples: np.ndarray, cut: Cut, settings: FeatureSettings) -> dict:
    """On a worker: measure, if its libraries are those that the manifest will name."""
    here = manifest.versions()
    if here != expected:
        names = sorted(n for n in {*here, *expected} if here.get(n) != expected.get(n))
        which = ", ".join(f"{n} {here.get(n, 'missing')} instead of {expected.get(n, 'none')}" for n in names)
        raise StorageError(f"A worker of the cluster has {which}. Install the same versions there as here.")
    return segments.measure(samples, cut, settings)


@contextlib.contextmanager
def _client(executor: str):
    scheduler = _address(executor)
    try:
        import dask
        import distributed
    except ImportError:
        raise StorageError(
            f"The executor {executor} needs the package distributed: run `pip install distributed`, or leave "
            "--executor out to measure on this machine."
        ) from None
    names = [n for n in logging.root.manager.loggerDict if n == "distributed" or n.startswith("distributed.")]
    loggers = {logging.getLogger(n): logging.getLogger(n).level for n in names}
    for logger in loggers:  # it is told in sentences
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}):
            try:
                client = _connected(distributed.Client, scheduler)
            except Exception as error:
                raise StorageError(
                    f"No dask scheduler answers at {executor}. Start one with `dask scheduler`, give the address that "
                    "it prints, and see that no firewall stands between."
                ) from error
            with contextlib.closing(client):
                yield client
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)


def _connected(kind, scheduler: str):
    """A client within twice ``CONNECT_S``: by itself it waits for ever for a server of another kind."""
    found = concurrent.futures.Future()

    def connect():
        try:
            found.set_result(kind(scheduler, timeout=CONNECT_S, set_as_default=False))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    return found.result(timeout=2 * CONNECT_S)


def _address(executor: str) -> str:
    parts = urllib.parse.urlsplit(executor)
    try:
        good = parts.scheme == "dask" and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:  # a port that is no number
        good = False
    if not good or parts.username or parts.query:
        raise StorageError(
            f"'{executor}' is no executor. Give dask://HOST:PORT with the address that the cluster's scheduler prints, "
            "such as dask://10.0.0.5:8786."
        )
    return f"tcp://{parts.netloc}"


def _lost(where: str, error: BaseException) -> StorageError:
    return StorageError(f"The cluster at {where} was lost ({type(error).__name__}). {_KEPT}")


def _foreign(where: str, error: BaseException) -> StorageError:
    return StorageError(
        f"Scheduler or workers of {where} cannot load svclib ({type(error).__name__}). Install the same svclib there "
        "as here, with the same versions of its libraries."
    )
