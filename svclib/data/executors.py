"""Executors that extract features of segments: threads of this process, or a running dask.distributed cluster.

Recordings are decoded here and sent as samples: no worker needs access to a folder, and the results are the same bytes
everywhere. The segment of a lost worker is computed again. A scheduler executes whatever it is sent by anybody who can
connect to it: keep it inside a network you trust.
"""

import concurrent.futures
import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from svclib.data import manifest, segments
from svclib.features.extract import FeatureSettings
from svclib.utils.errors import StorageError

CONNECT_S = 10.0
PATIENCE_S = 60.0  # how long a cluster may be without workers
MAX_THREADS = 16
MAX_PENDING = 64  # segments; one of 160 s at 44.1 kHz takes 14 MB of the scheduler's memory
Cut = tuple[int, int, int, int]
_KEPT = "What is finished is kept: start it again and it goes on."


@contextlib.contextmanager
def opened(executor: str | None, log_message: Callable[[str], None]) -> Iterator[Any]:
    """The executor of an address, ``dask://HOST:PORT``, or of this machine; pending segments are dropped at the end.

    Its ``submit(samples, cut, settings)`` starts ``segments.measure`` and returns a function that waits for its arrays;
    ``pending`` is the number of segments to keep in progress. StorageError for an invalid address, a missing package,
    or a scheduler that does not answer; ``log_message`` receives texts while the cluster is waited for.
    """
    if executor is None:
        with contextlib.closing(LocalExecutor()) as local:
            yield local
    else:
        with _client(executor) as client:
            yield DaskExecutor(client, executor, log_message)


class LocalExecutor:
    """Threads of this process, one per core: the extraction spends its time outside of Python."""

    def __init__(self):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = concurrent.futures.ThreadPoolExecutor(min(MAX_THREADS, cores))
        self.pending = 1 + min(MAX_THREADS, cores)
        self.running: set[concurrent.futures.Future] = set()

    def submit(self, samples: np.ndarray, cut: Cut, settings: FeatureSettings) -> Callable[[], dict]:
        """Start ``segments.measure``; the returned function waits for its arrays."""
        future = self.threads.submit(segments.measure, samples, cut, settings)
        self.running.add(future)
        return lambda: self._result(future, samples, cut, settings)

    def _result(self, future, samples: np.ndarray, cut: Cut, settings: FeatureSettings) -> dict:
        """If memory ran out, this segment and all later ones are computed one by one."""
        self.running.discard(future)
        try:
            return future.result()
        except MemoryError:
            concurrent.futures.wait(self.running)
            self.pending = 0
        try:
            return segments.measure(samples, cut, settings)
        except MemoryError:
            seconds = (cut[3] - cut[2]) / settings.sample_rate_hz
            raise StorageError(
                f"There is too little memory to measure a segment of {seconds:.0f} seconds. Close other programs, or "
                f"take a machine with more. {_KEPT}"
            ) from None

    def close(self) -> None:
        """Drop pending segments and end the threads."""
        self.threads.shutdown(wait=True, cancel_futures=True)


class DaskExecutor:
    """Workers of a dask.distributed cluster."""

    def __init__(self, client, address: str, log_message: Callable[[str], None]):
        self.client, self.address, self.log_message = client, address, log_message
        self.versions = manifest.versions()

    @property
    def pending(self) -> int:
        """Two more than there are threads at present: workers may come and go."""
        return min(MAX_PENDING, 2 + self._n_threads())

    def _n_threads(self) -> int:
        with _connection_errors(self.address):
            return sum(self.client.nthreads().values())

    def submit(self, samples: np.ndarray, cut: Cut, settings: FeatureSettings) -> Callable[[], dict]:
        """Start ``segments.measure`` on a worker; the returned function waits for its arrays."""
        with _connection_errors(self.address):
            future = self.client.submit(_measure_remotely, self.versions, samples, cut, settings, pure=False)
        return lambda: self._result(future)

    def _result(self, future) -> dict:
        """Arrays of a segment; StorageError if the cluster is lost or has had no worker for ``PATIENCE_S``."""
        from distributed import KilledWorker

        since = time.monotonic()
        while True:
            try:
                found = future.result(timeout=1.0)
                break
            except TimeoutError:
                pass
            except KilledWorker as error:
                raise StorageError(
                    f"Several workers of {self.address} were lost one after the other on the same segment. Give each "
                    f"more memory, or fewer threads. {_KEPT}"
                ) from error
            except (ImportError, RuntimeError) as error:
                raise StorageError(
                    f"Scheduler or workers of {self.address} cannot load svclib ({type(error).__name__}). Install the "
                    "same svclib there as here, with the same versions of its libraries."
                ) from error
            except Exception as error:
                raise _lost(self.address, error) from error
            if self._n_threads():
                since = time.monotonic()
                self.log_message("waiting for the cluster")
            elif time.monotonic() - since < PATIENCE_S:
                self.log_message("the cluster has no worker now; waiting for one")
            else:
                raise StorageError(
                    f"The cluster at {self.address} has had no worker for {PATIENCE_S:.0f} seconds. Start workers "
                    f"with `dask worker {self.address.removeprefix('dask://')}`. {_KEPT}"
                )
        if isinstance(found, Exception):
            raise found
        return found


def _measure_remotely(expected: dict[str, str], samples: np.ndarray, cut: Cut, settings: FeatureSettings):
    """On a worker: ``segments.measure``, if its libraries have the versions that the manifest will name.

    Errors are returned, to distinguish them from those that dask raises itself.
    """
    here = manifest.versions()
    if here != expected:
        names = sorted(n for n in {*here, *expected} if here.get(n) != expected.get(n))
        which = ", ".join(f"{n} {here.get(n, 'missing')} instead of {expected.get(n, 'none')}" for n in names)
        return StorageError(f"A worker of the cluster has {which}. Install the same versions there as here.")
    try:
        return segments.measure(samples, cut, settings)
    except Exception as error:
        return error


@contextlib.contextmanager
def _client(address: str):
    """A client of the scheduler at an address; the log of distributed is silent, its errors are raised."""
    if not (scheduler := re.fullmatch(r"dask://([^@/?#]+:\d{1,5})/?", address)):
        raise StorageError(
            f"'{address}' is not an executor. Give dask://HOST:PORT with the address that the cluster's scheduler "
            "prints, such as dask://10.0.0.5:8786."
        )
    try:
        import dask
        import distributed
    except ImportError:
        raise StorageError(
            f"The executor {address} needs the package distributed: run `pip install distributed`, or leave "
            "--executor out to measure on this machine."
        ) from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"}))
        for name in [n for n in logging.root.manager.loggerDict if n.split(".")[0] == "distributed"]:
            stack.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        try:
            client = _connected(distributed.Client, f"tcp://{scheduler[1]}")
        except Exception as error:
            raise StorageError(
                f"No dask scheduler answers at {address}. Start one with `dask scheduler`, give the address that it "
                "prints, and check that no firewall stands between."
            ) from error
        yield stack.enter_context(contextlib.closing(client))


def _connected(kind, scheduler: str):
    """A client within twice ``CONNECT_S``: on its own it waits for ever for a server of another kind."""
    found: concurrent.futures.Future = concurrent.futures.Future()

    def connect():
        try:
            found.set_result(kind(scheduler, timeout=CONNECT_S, set_as_default=False))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    return found.result(timeout=2 * CONNECT_S)


@contextlib.contextmanager
def _connection_errors(address: str):
    try:
        yield
    except Exception as error:
        raise _lost(address, error) from error


def _lost(address: str, error: Exception) -> StorageError:
    return StorageError(f"The cluster at {address} was lost ({type(error).__name__}). {_KEPT}")
