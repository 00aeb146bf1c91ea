"""Who is training a run: a heartbeat beside its checkpoints, so that two machines notice each other.

``RUN/lease-WRITER.json`` is written anew every 20 s while a session trains. Drive knows no locks and machines disagree
about the time, so no clock decides: a lease is alive if its count of beats goes up while one watches. One that does not
is stale and put aside, so nobody is kept out for longer than the watch takes. Every lease carries a number greater than
those it found; of two that are alive, the greater one stays and the other saves and stops.
"""

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from svclib.training.checkpoint_format import now
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import TrainingError

HEARTBEAT_S = 20.0
WATCH_S = 28.0
LOOK_EVERY_S = 1.0
PREFIX = "lease-"
_FIELDS = {"machine": str, "boot": str, "pid": int, "since": str, "seen": str, "beat": int, "number": int}
_held: set[str] = set()  # writers of this process


class Lease:
    """Holds a run while the ``with`` block lasts.

    Args:
        run: Folder of the run.
        writer: Name of the session, as in its file names.
        take_over: Do not ask; the session that holds the run saves and stops when it notices.
        tell: Called with what is worth telling.

    Raises:
        TrainingError: on entering, if another session is seen to be alive; names machine and time.
    """

    def __init__(self, run: Path, writer: str, take_over: bool = False, tell: Callable[[str], None] = lambda _: None):
        self.run, self.writer, self.take_over, self.tell = Path(run), writer, take_over, tell
        self.lost = ""  # why this session has to stop: another one took over
        self._sign = {"machine": filesystem.host_name(), "boot": _boot(), "pid": os.getpid(), "since": now(), "beat": 0}
        self._stop, self._thread = threading.Event(), None

    @property
    def path(self) -> Path:
        """The heartbeat's file."""
        return self.run / f"{PREFIX}{self.writer}.json"

    def __enter__(self):
        if os.environ.get("RANK", "0") != "0":  # one process of several speaks for all
            return self
        self._made = not atomic_store.exists(self.run)
        try:
            files = self._files()
        except OSError as error:
            files = []
            self.tell(f"{error} Whether another machine trains this run is looked at again in {HEARTBEAT_S:.0f} s.")
        others = self._others(files)
        open_ = {writer: sign for writer, sign in others.items() if not _dead(writer, sign)}
        if open_ and not self.take_over and (alive := self._watch(open_)):
            raise TrainingError(
                f"{_told(self.run, alive)} Stop it there, or take over (take_over=True, svclib train --take-over): "
                "then that one saves and stops."
            )
        self._sign["number"] = 1 + max((sign["number"] for sign in others.values()), default=0)
        for writer, sign in others.items():
            if writer in open_ and self.take_over:
                self.tell(f"{_told(self.run, sign)} It is taken over here.")
            else:
                with contextlib.suppress(OSError):
                    atomic_store.remove(self.run / f"{PREFIX}{writer}.json")
        for path in files:
            with contextlib.suppress(OSError):
                if atomic_store.size_of(path) == 0:  # an interrupt came while it was deleted
                    atomic_store.remove(path)
        try:
            self._beat()
        except OSError as error:
            self.tell(f"{error} Other machines do not see yet that this one trains; that is tried again.")
        _held.add(self.writer)  # an interrupt before this leaves a lease that counts as dead
        self._thread = threading.Thread(target=self._go_on, daemon=True, name="svclib-lease")
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(timeout=5.0)
        _held.discard(self.writer)
        with contextlib.suppress(OSError):  # a mount that dropped keeps it; it is stale, then
            atomic_store.remove(self.path)
        if self._made:  # nothing came of it
            atomic_store.remove_if_empty(self.run)

    def _watch(self, signs: dict[str, dict]) -> dict | None:
        """The first of these leases whose beat goes up while we look, or None."""
        self.tell(f"{_told(self.run, next(iter(signs.values())))} Looking for {WATCH_S:.0f} s whether it still lives.")
        end = time.monotonic() + WATCH_S
        while time.monotonic() < end:
            time.sleep(LOOK_EVERY_S)
            for writer, sign in self._others().items():
                if writer in signs and sign["beat"] != signs[writer]["beat"]:
                    return sign
        return None

    def _go_on(self) -> None:
        seen: dict[str, int] = {}
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a Drive that is away is the keeper's matter
                self._beat()
            others = self._others()
            for writer, sign in others.items():
                newer = (sign["number"], writer) > (self._sign["number"], self.writer)
                if newer and writer in seen and sign["beat"] != seen[writer]:
                    self.lost = f"{_told(self.run, sign)} It took over, so training stopped here."
            seen = {writer: sign["beat"] for writer, sign in others.items()}

    def _beat(self) -> None:
        self._sign |= {"beat": self._sign["beat"] + 1, "seen": now()}
        atomic_store.write_json(self.path, self._sign)

    def _others(self, files: list[Path] | None = None) -> dict[str, dict]:
        """The other leases of the run, by writer; what is torn or not ours is left out."""
        found = {}
        if files is None:
            try:
                files = self._files()
            except OSError:
                return {}
        for path in files:
            writer = path.name[len(PREFIX) : -len(".json")]
            with contextlib.suppress(OSError):
                sign = atomic_store.read_json(path)
                if writer != self.writer and isinstance(sign, dict) and _is_sign(sign):
                    found[writer] = sign
        return found

    def _files(self) -> list[Path]:
        return [self.run / n for n in atomic_store.names(self.run) if n.startswith(PREFIX) and n.endswith(".json")]


def _is_sign(sign: dict) -> bool:
    return all(type(sign.get(name)) is kind for name, kind in _FIELDS.items())


def _dead(writer: str, sign: dict) -> bool:
    """Certainly over: a process of this machine that is no more, or an earlier session of this process."""
    if (sign["machine"], sign["boot"]) != (filesystem.host_name(), _boot()):
        return False
    return writer not in _held if sign["pid"] == os.getpid() else not filesystem.process_alive(sign["pid"])


def _told(run: Path, sign: dict) -> str:
    return (
        f"'{run}' is being trained on {sign['machine'][:60]} (process {sign['pid']}) since {_clock(sign['since'])}, "
        f"last sign of life {_clock(sign['seen'])} by that machine's clock."
    )


def _clock(text: str) -> str:
    with contextlib.suppress(ValueError):
        return f"{datetime.datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"
    return text[:30]


def _boot() -> str:
    """Tells machines of the same name apart, and a machine from itself before a restart."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
