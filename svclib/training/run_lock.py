"""Advisory lock of a run by a heartbeat file; a stale lock expires after 28 s.

``RUN/lease-SESSION.json`` is rewritten every 20 s while a session trains. Drive has no locks and clocks of machines
differ, so a lock counts as alive if its beat count increases while it is watched; others are removed. Every lock
carries a number greater than those it found; of two live ones, the greater stays and the other session saves and stops.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from svclib.training.checkpoints import now
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import TrainingError

HEARTBEAT_S = 20.0
WATCH_S = 28.0
POLL_S = 1.0
PREFIX, SUFFIX = "lease-", ".json"
_FIELDS = {"machine": str, "boot": str, "pid": int, "since": str, "seen": str, "beat": int, "number": int}
_held: set[str] = set()  # sessions of this process


class RunLock:
    """Holds the lock of a run while the ``with`` block lasts; of several processes the first locks for all.

    Entering raises TrainingError if another live session holds the lock, unless ``take_over``: then that one saves and
    stops. ``lost`` is empty, or the message that another session has taken over.
    """

    def __init__(self, run: Path, session_id: str, take_over: bool = False, log_message: Callable = lambda text: None):
        self.run, self.session_id, self.take_over, self.log_message = Path(run), session_id, take_over, log_message
        self.lost, self.path = "", self._path(session_id)
        self.taken_over: set[str] = set()  # sessions that save once more and stop
        self._lock = {"machine": filesystem.host_name(), "boot": filesystem.process_scope(), "pid": os.getpid()}
        self._lock |= {"since": now(), "beat": 0}
        self._stop, self._thread = threading.Event(), None

    def __enter__(self):
        if os.environ.get("RANK", "0") != "0":
            return self
        self._made = not filesystem.exists(self.run)
        try:
            sessions = self._sessions()
        except OSError as error:
            sessions = []
            self.log_message(f"{error} The lock of the run is checked again in {HEARTBEAT_S:.0f} s.")
        others = self._others(sessions)
        self.taken_over = set(others) if self.take_over else set()
        live = {session: lock for session, lock in others.items() if not _dead(session, lock)}
        if live and not self.take_over and (alive := self._watch(live)):
            raise TrainingError(
                f"{_described(self.run, alive)} Stop it there, or take over (take_over=True, svclib train "
                "--take-over): then that one saves and stops."
            )
        self._lock["number"] = 1 + max((lock["number"] for lock in others.values()), default=0)
        for session in sessions:
            if session in live and self.take_over:
                self.log_message(f"{_described(self.run, live[session])} It is taken over here.")
                continue
            with contextlib.suppress(OSError):
                path = self._path(session)
                if session in others or filesystem.size_of(path) == 0:  # 0: its deletion was interrupted
                    atomic_store.remove(path)
        try:
            self._beat()
        except OSError as error:
            self.log_message(f"{error} Other machines cannot see the lock yet; writing it is tried again.")
        _held.add(self.session_id)  # a lock interrupted before this counts as dead
        self._thread = threading.Thread(target=self._heartbeat, daemon=True, name="svclib-run-lock")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(timeout=5.0)
        _held.discard(self.session_id)
        with contextlib.suppress(OSError):  # on a disconnected mount it stays and becomes stale
            atomic_store.remove(self.path)
        if self._made:  # nothing was written
            atomic_store.remove_if_empty(self.run)

    def _watch(self, locks: dict[str, dict]) -> dict | None:
        """The first of these locks whose beat count increases within ``WATCH_S``, or None."""
        first = _described(self.run, next(iter(locks.values())))
        self.log_message(f"{first} Checking for {WATCH_S:.0f} s whether it is still alive.")
        end = time.monotonic() + WATCH_S
        while time.monotonic() < end:
            time.sleep(POLL_S)
            for session, lock in self._others().items():
                if session in locks and lock["beat"] != locks[session]["beat"]:
                    return lock
        return None

    def _heartbeat(self) -> None:
        beats: dict[str, int] = {}
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a disconnected Drive is handled where checkpoints are saved
                self._beat()
            others = self._others()
            for session, lock in others.items():
                newer = (lock["number"], session) > (self._lock["number"], self.session_id)
                if newer and session in beats and lock["beat"] != beats[session]:
                    self.lost = f"{_described(self.run, lock)} It took over, so training stopped here."
            beats = {session: lock["beat"] for session, lock in others.items()}

    def _beat(self) -> None:
        self._lock |= {"beat": self._lock["beat"] + 1, "seen": now()}
        atomic_store.write_json(self.path, self._lock)

    def _path(self, session: str) -> Path:
        return self.run / f"{PREFIX}{session}{SUFFIX}"

    def _sessions(self) -> list[str]:
        names = [n for n in filesystem.names(self.run) if n.startswith(PREFIX) and n.endswith(SUFFIX)]
        return [n[len(PREFIX) : -len(SUFFIX)] for n in names]

    def _others(self, sessions: list[str] | None = None) -> dict[str, dict]:
        """Valid locks of other sessions; none while the folder cannot be listed."""
        found = {}
        with contextlib.suppress(OSError):
            for session in self._sessions() if sessions is None else sessions:
                with contextlib.suppress(OSError):
                    lock = filesystem.read_json(self._path(session))
                    valid = isinstance(lock, dict) and all(type(lock.get(n)) is kind for n, kind in _FIELDS.items())
                    if valid and session != self.session_id:
                        found[session] = lock
        return found


def _dead(session: str, lock: dict) -> bool:
    """True for a lock of a process that has ended, or of an earlier session of this process."""
    if lock["boot"] != filesystem.process_scope():
        return False
    return session not in _held if lock["pid"] == os.getpid() else not filesystem.process_alive(lock["pid"])


def _described(run: Path, lock: dict) -> str:
    since, seen = (lock[name][:30].replace("T", " ").replace("Z", " UTC") for name in ("since", "seen"))
    return (
        f"'{run}' is being trained on {lock['machine'][:60]} (process {lock['pid']}) since {since}, last heartbeat "
        f"{seen} by that machine's clock."
    )
