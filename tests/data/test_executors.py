"""A dask cluster makes the dataset that this process makes, byte for byte, whatever becomes of workers.

Truths: the bytes of a preparation in this process; a worker process killed by the system half-way; a port where nobody
listens, or somebody else does. Most tests of the cluster use workers in threads with the cheap measure of
``test_dataset``.
"""

import contextlib
import http.server
import os
import signal
import socket
import sys
import threading
import time

import distributed
import pytest
from cheap_features import SETTINGS, cheap_extract, contents, make_files

from svclib import __main__
from svclib.data import dataset, executors, manifest, segments, shards
from svclib.features import extract as features
from svclib.utils.errors import Cancelled, ModelError, StorageError


@contextlib.contextmanager
def running(n_workers: int, processes: bool = False):
    """A local cluster, and its address as ``--executor`` takes it."""
    options = {"threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1", "protocol": "tcp"}
    with distributed.LocalCluster(n_workers=n_workers, processes=processes, silence_logs=50, **options) as made:
        yield made, made.scheduler_address.replace("tcp://", "dask://")


@pytest.fixture
def short(monkeypatch):
    """Many segments and several shards from a few seconds."""
    monkeypatch.setattr(segments, "SEGMENT_S", 0.7)
    monkeypatch.setattr(segments, "CONTEXT_S", 0.1)
    monkeypatch.setattr(shards, "CAP_BYTES", 100_000)


@pytest.mark.case("K1")
def test_two_workers_make_the_same_bytes(tmp_path, measured, short, monkeypatch):
    sources = make_files(tmp_path / "a", 4, 2.0)
    dataset.prepare(sources, tmp_path / "here", SETTINGS)
    done, told = set(), []

    def watched(samples, cut, settings, measure=segments.measure):
        done.add(distributed.get_worker().name)
        time.sleep(0.02)
        return measure(samples, cut, settings)

    monkeypatch.setattr(segments, "measure", watched)
    with running(2) as (_, address):

        def progress(fraction, text):
            told.append(fraction)

        data = dataset.prepare(sources, tmp_path / "there", SETTINGS, progress=progress, executor=address)
    assert done == {0, 1}, "both workers must have measured"
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(data.recordings) == 4 and told == sorted(told) and told[-1] == 1.0


@pytest.mark.case("K1")
def test_a_bad_recording_is_skipped_with_the_same_words(tmp_path, short, monkeypatch):
    def picky(samples, settings, progress=None):
        if len(samples) > 3 * 16000 // 4:
            raise ModelError("nobody can measure this")
        return cheap_extract(samples, settings)

    monkeypatch.setattr(features, "extract", picky)
    monkeypatch.setattr(segments, "SEGMENT_S", 100.0)
    sources = make_files(tmp_path / "a", 3, 0.5) + make_files(tmp_path / "b", 1, 1.0, first=7)
    here = dataset.prepare(sources, tmp_path / "here", SETTINGS)
    with running(1) as (_, address):
        there = dataset.prepare(sources, tmp_path / "there", SETTINGS, executor=address)
    assert there.skipped == here.skipped and "nobody can measure this" in there.skipped[0]["reason"]
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_worker_that_leaves_half_way_loses_nothing(tmp_path, measured, short):
    sources, gone = make_files(tmp_path / "a", 4, 2.0), []
    dataset.prepare(sources, tmp_path / "here", SETTINGS)
    with running(2) as (local, address):

        def progress(fraction, text):
            if "measured" in text and not gone:
                gone.append(local.workers[0])
                local.sync(local.workers[0].close)

        dataset.prepare(sources, tmp_path / "there", SETTINGS, progress=progress, executor=address)
    assert gone and contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.case("G5", "K2")
@pytest.mark.slow
def test_a_worker_process_killed_half_way_loses_nothing(tmp_path, monkeypatch):
    """The real measure in real processes; the busy one is killed by the system, its segments go to the other."""
    monkeypatch.setattr(shards, "CAP_BYTES", 100_000)
    sources = make_files(tmp_path / "a", 6, 2.0)
    dataset.prepare(sources, tmp_path / "here", SETTINGS)
    killed = []
    with running(2, processes=True) as (local, address):

        def progress(fraction, text):
            if "measured" in text and not killed:
                busy = next(w for w in local.scheduler.workers.values() if w.processing)
                local.scheduler.allowed_failures = 3
                killed.append(next(n.pid for n in local.workers.values() if n.worker_address == busy.address))
                os.kill(killed[0], signal.SIGKILL)

        dataset.prepare(sources, tmp_path / "there", SETTINGS, progress=progress, executor=address)
    assert killed
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.case("K4")
def test_cancel_and_interrupt_leave_a_state_that_goes_on_here(tmp_path, measured, short):
    sources = make_files(tmp_path / "a", 4, 2.0)
    dataset.prepare(sources, tmp_path / "here", SETTINGS)

    def interrupt(fraction, text):
        if "take 02" in text and "measured" in text:
            raise KeyboardInterrupt

    with running(2) as (local, address):
        with pytest.raises(KeyboardInterrupt):
            dataset.prepare(sources, tmp_path / "out", SETTINGS, progress=interrupt, executor=address)
        calls = iter([False] * 6 + [True] * 100)
        with pytest.raises(Cancelled, match="goes on"):
            dataset.prepare(sources, tmp_path / "out2", SETTINGS, cancelled=lambda: next(calls), executor=address)
        waited = time.monotonic()
        while local.scheduler.tasks and time.monotonic() - waited < 5:
            time.sleep(0.05)
        assert not local.scheduler.tasks, "work that nobody waits for stays on the cluster"
    for out in ("out", "out2"):
        dataset.prepare(sources, tmp_path / out, SETTINGS)
        assert contents(tmp_path / out) == contents(tmp_path / "here")


@pytest.mark.case("K3")
def test_no_worker_and_a_lost_scheduler_are_told(tmp_path, measured, short, monkeypatch):
    monkeypatch.setattr(executors, "PATIENCE_S", 1.5)
    sources, told = make_files(tmp_path / "a", 1, 2.0), []
    with running(0) as (_, address), pytest.raises(StorageError, match="no worker.*dask worker 127.0.0.1"):
        dataset.prepare(sources, tmp_path / "out", SETTINGS, progress=lambda f, t: told.append(t), executor=address)
    assert any("no worker now" in t for t in told)
    with contextlib.ExitStack() as stack:
        _, address = stack.enter_context(running(1))

        def progress(fraction, text):
            if "measured" in text:
                stack.close()

        with pytest.raises(StorageError, match="was lost.*goes on"):
            dataset.prepare(sources, tmp_path / "out", SETTINGS, progress=progress, executor=address)
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    dataset.prepare(sources, tmp_path / "here", SETTINGS)
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


@pytest.mark.case("K3")
def test_workers_with_other_versions_are_refused(tmp_path, measured, short, monkeypatch):
    sources, real = make_files(tmp_path / "a", 1), manifest.versions()
    on_worker = lambda: {**real, "torch": "1.0"} if _on_a_worker() else real  # noqa: E731
    monkeypatch.setattr(manifest, "versions", on_worker)
    with running(1) as (_, address), pytest.raises(StorageError, match="torch 1.0 instead of"):
        dataset.prepare(sources, tmp_path / "out", SETTINGS, executor=address)


def _on_a_worker() -> bool:
    try:
        return bool(distributed.get_worker())
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------- addresses, packages


@pytest.mark.case("K3")
@pytest.mark.parametrize(
    "executor", ["dask", "dask://", "dask://here", "dask://here:x", "tcp://1.2.3.4:5", "dask://a:1/b"]
)
def test_what_is_no_address_is_told_before_anything_is_read(tmp_path, executor, capsys, short, measured):
    make_files(tmp_path / "a", 1)
    arguments = ["prepare", "--audio", tmp_path / "a", "--out", tmp_path / "out", "--config", "ddsp_small"]
    assert __main__.main([*map(str, arguments), "--executor", executor]) == 2
    said = capsys.readouterr().err
    assert executor in said and "dask://HOST:PORT" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.case("K3")
def test_a_port_without_a_scheduler_is_told(tmp_path, monkeypatch, short, measured):
    monkeypatch.setattr(executors, "CONNECT_S", 1.0)
    sources = make_files(tmp_path / "a", 1)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for where in (f"127.0.0.1:{port}", f"127.0.0.1:{server.server_port}", "no-such-host.invalid:8786"):
            with pytest.raises(StorageError, match=f"No dask scheduler answers at dask://{where}"):
                dataset.prepare(sources, tmp_path / "out", SETTINGS, executor=f"dask://{where}")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.case("K3")
def test_the_missing_package_is_named(tmp_path, monkeypatch, short, measured):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(StorageError, match="pip install distributed"):
        dataset.prepare(make_files(tmp_path / "a", 1), tmp_path / "out", SETTINGS, executor="dask://127.0.0.1:8786")
