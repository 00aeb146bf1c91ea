"""Reading a zip and JSON that a stranger made: nothing is extracted, run or believed; whatever is odd is refused.

Two ideas live here. :class:`Archive` looks into a zip with a list of allowed names, caps on every size and a seal (the
zip's comment holds the SHA-256 of all bytes before it). The JSON functions read strictly and turn plain dictionaries
into settings classes with the types and ranges those classes ask for.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import math
import re
import struct
import types
import typing
import zipfile
import zlib
from pathlib import Path
from typing import Any

MEMBERS = ("instrument.json", "weights.safetensors", "config.gin")
MAX_BYTES = {"instrument.json": 4 << 20, "weights.safetensors": 1 << 30, "config.gin": 1 << 18}
MAX_FILE_BYTES, MAX_ENTRIES, MAX_DIRECTORY_BYTES, MAX_RATIO = 1 << 30, 40, 1 << 16, 200
MAX_KEYS, MAX_ITEMS = 20_000, 400_000  # of JSON, counted before it is parsed
SEAL = "svclib instrument sha256 "
_IGNORED = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|Thumbs\.db$|desktop\.ini$|\._[^/]*$)")
_PEERS = (
    ("a DDSP (TensorFlow) model", r"(^|/)(ckpt-\d+\.(index|data.*)|operative_config.*\.gin|dataset_statistics\.pkl)$"),
    ("an RVC model", r"\.index$"),
    ("a so-vits-svc model", r"(^|/)[GD]_\d+\.pth$"),
    ("a DiffSinger or Diff-SVC model", r"\.ckpt$"),
    ("a model in PyTorch's pickle format, such as RVC's", r"\.(pth?|bin)$"),
    ("an ONNX model", r"\.onnx$"),
)


class InstrumentError(ValueError):
    """An instrument that cannot be used or made; the message names the file, what is wrong and what to do."""


@contextlib.contextmanager
def guard(path: Path):
    """Turn whatever reading a broken file raises into one :class:`InstrumentError` that names it."""
    try:
        yield
    except InstrumentError as error:
        text = "".join(c if c.isprintable() else "?" for c in str(error))
        raise InstrumentError(f"'{path.name}' cannot be opened: {text}") from None
    except FileNotFoundError:
        raise InstrumentError(f"There is no instrument '{path}'.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeError) as error:
        raise InstrumentError(f"'{path.name}' is damaged ({str(error)[:100].strip()}); download it again.") from None
    except Exception as error:  # whatever else a stranger's file provokes
        why = "".join(c if c.isprintable() else "?" for c in str(error)[:200]) or type(error).__name__
        raise InstrumentError(f"'{path.name}' cannot be read ({why}); download it again.") from None


def pack(members: dict[str, bytes]) -> bytes:
    """A sealed zip: stored, without dates or owners, so that the same members give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
        archive.comment = (SEAL + "0" * 64).encode()
    body = buffer.getvalue()[:-64]
    return body + hashlib.sha256(body[: -len(SEAL)]).hexdigest().encode()


class Archive:
    """An instrument's zip, opened for reading after everything but the contents was checked.

    Attributes:
        sha256: Of the whole file, once :meth:`check_seal` has run.
    """

    def __init__(self, path: Path):
        if path.is_dir():
            raise InstrumentError("it is a folder; an instrument is one .zip file.")
        self.file = path.open("rb")
        self.sha256 = ""
        try:
            self.n_bytes, self.comment = _check_end(self.file)
            self.zip = zipfile.ZipFile(self.file)
            self.entries = _check_entries(self.zip.infolist())
        except BaseException:
            self.file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def size(self, name: str) -> int:
        """Unpacked bytes of a member, as the directory says."""
        return self.entries[name].file_size

    def read(self, name: str) -> bytes:
        """A member's bytes, streamed; never more than its directory entry announced."""
        entry, blocks, total = self.entries[name], [], 0
        with self.zip.open(entry) as member:
            while block := member.read(1 << 16):
                total += len(block)
                if total > entry.file_size:
                    raise InstrumentError(f"{name} is longer than it says.")
                blocks.append(block)
        return b"".join(blocks)

    def check_seal(self) -> None:
        """Compare the seal with the bytes; also computes ``sha256``. A zip packed anew has no comment and no seal.

        Raises:
            InstrumentError: if any byte differs, or the file is larger than its members explain.
        """
        explained = sum(e.compress_size for e in self.entries.values()) + 4 * MAX_DIRECTORY_BYTES
        if self.n_bytes > explained:
            raise InstrumentError(f"it has {self.n_bytes} bytes, more than its contents explain; download it again.")
        digest, left = hashlib.sha256(), self.n_bytes - len(self.comment)
        self.file.seek(0)
        while left > 0:
            block = self.file.read(min(left, 1 << 20))
            if not block:
                raise InstrumentError("it is cut off; download it again.")
            digest.update(block)
            left -= len(block)
        if self.comment and self.comment != (SEAL + digest.hexdigest()).encode():
            raise InstrumentError("it is damaged (its seal differs from its contents); download it again.")
        digest.update(self.comment)
        self.sha256 = digest.hexdigest()


def _check_end(file) -> tuple[int, bytes]:
    """Look at a zip's end record before zipfile reads a directory of any size: (file size, comment)."""
    size = file.seek(0, 2)
    if size == 0:
        raise InstrumentError("it is empty (0 bytes); download it again, or wait until the Drive has loaded it.")
    if size > MAX_FILE_BYTES:
        raise InstrumentError(f"it has {size / 1e6:.0f} MB; an instrument has at most {MAX_FILE_BYTES / 1e6:.0f} MB.")
    file.seek(max(0, size - 65557))
    tail = file.read()
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise InstrumentError("it is not a zip file, so not an instrument; was something else saved under this name?")
    at = len(tail) - 22 if tail[-22:-18] == b"PK\x05\x06" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise InstrumentError("it is cut off; download it again.")
    disk, first, here, entries, n_directory, _, n_comment = struct.unpack("<4H2IH", tail[at + 4 : at + 22])
    if at + 22 + n_comment != len(tail):
        raise InstrumentError("it has bytes after its end; download it again.")
    if disk or first or here != entries or tail[max(0, at - 20) : at][:4] == b"PK\x06\x07":
        raise InstrumentError("it is a zip of a kind no instrument has (several parts, or zip64).")
    if entries > MAX_ENTRIES or n_directory > MAX_DIRECTORY_BYTES:
        raise InstrumentError(f"it holds {entries} files; an instrument holds {len(MEMBERS)}.")
    return size, tail[at + 22 :]


def _check_entries(entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    names = [e.orig_filename for e in entries]
    if len(set(names)) != len(names):
        raise InstrumentError("it holds two files of one name; download it again.")
    kept = [e for e in entries if not _IGNORED.search(e.orig_filename) and not e.orig_filename.endswith("/")]
    folders = {e.orig_filename.rpartition("/")[0] for e in kept}
    level = folders.pop() + "/" if len(folders) == 1 and "" not in folders else ""
    level = level if re.fullmatch(r"[^/\\:\x00-\x1f]{1,120}/", level) and level not in ("./", "../") else ""
    found = {e.orig_filename[len(level) :]: e for e in kept}
    for name in [n for n in found if n not in MEMBERS]:
        for peer, pattern in _PEERS:
            if any(re.search(pattern, n) for n in names):
                raise InstrumentError(f"this is {peer}; it cannot be used here. Train an instrument of your own.")
        raise InstrumentError(f"it holds {name[:60]!r}, which no instrument has; it was refused unread.")
    missing = [m for m in MEMBERS if m not in found]
    if missing:
        raise InstrumentError(f"it holds no {missing[0]}, so it is not an instrument.")
    for name, entry in found.items():
        if entry.flag_bits & 0x1:
            raise InstrumentError(f"{name} is encrypted; ask its maker for a plain one.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InstrumentError(
                f"{name} is packed by method {entry.compress_type}; only stored and deflated are read."
            )
        if (entry.external_attr >> 16) & 0o170000 not in (0, 0o100000):
            raise InstrumentError(f"{name} is a link or a device, not a file; it was refused unread.")
        if entry.file_size > MAX_BYTES[name] or entry.file_size > MAX_RATIO * max(entry.compress_size, 100):
            raise InstrumentError(f"{name} would unpack to {entry.file_size} bytes, more than an instrument needs.")
    return found


# JSON and settings ----------------------------------------------------------------------------------------------------


def strict_json(data: bytes, where: str) -> Any:
    """Parse JSON and refuse duplicate keys, NaN and infinities, huge numbers and deep nesting.

    Raises:
        InstrumentError: naming ``where``.
    """
    if data.count(b":") > MAX_KEYS or data.count(b",") > MAX_ITEMS:
        raise InstrumentError(f"{where} holds more values than anything of svclib's.")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_number,
            parse_float=_finite,
            parse_int=_short,
        )
    except (ValueError, RecursionError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise InstrumentError(f"{where} is not plain JSON ({text}).") from None


def _unique_keys(pairs: list) -> dict:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


def _refuse_number(text: str):
    raise ValueError(f"{text[:20]} is not a finite number of ordinary length")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 40 else math.inf
    return value if math.isfinite(value) else _refuse_number(text)


def _short(text: str) -> int:
    return int(text) if len(text) <= 18 else _refuse_number(text)


def check_fields(value: Any, fields: dict[str, Any], where: str) -> None:
    """Refuse a dictionary that has not exactly these keys with values of these types.

    Raises:
        InstrumentError: naming the key.
    """
    if not isinstance(value, dict):
        raise InstrumentError(f"{where} is not a table of values.")
    for key in value.keys() - fields.keys():
        raise InstrumentError(f"{where}: unknown key '{key[:60]}'.")
    for key, kinds in fields.items():
        if key not in value:
            raise InstrumentError(f"{where}: '{key}' is missing.")
        if not isinstance(value[key], kinds) or isinstance(value[key], bool):
            raise InstrumentError(f"{where}: '{key}' is a {type(value[key]).__name__}, which does not belong there.")


def check_plain(value: Any, where: str, items: int, depth: int = 6) -> int:
    """Refuse JSON with more than ``items`` values, deeper than ``depth`` or with very long text; returns the count.

    Raises:
        InstrumentError: naming ``where``.
    """
    count = 1
    if depth == 0:
        raise InstrumentError(f"{where} is nested too deeply.")
    if isinstance(value, str) and len(value) > 20000:
        raise InstrumentError(f"{where} holds a text of {len(value)} characters.")
    if isinstance(value, dict):
        if any(len(k) > 200 or not k.isprintable() for k in value):
            raise InstrumentError(f"{where} has a key that is not a name.")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            count += check_plain(item, where, items, depth - 1)
            if count > items:
                raise InstrumentError(f"{where} holds more than {items} values.")
    return count


def check_statistics(value: Any, where: str = "statistics", singers: bool = True) -> None:
    """Refuse statistics of a dataset that conversion could not work with.

    Raises:
        InstrumentError: naming the key.
    """
    check_plain(value, where, items=MAX_ITEMS, depth=7)
    if not isinstance(value, dict):
        raise InstrumentError(f"{where} is not a table of values.")
    for table in ("f0_midi", "loudness_db"):
        _check_numbers(value.get(table), f"{where}.{table}")
    quantiles = value.get("loudness_quantiles_db")
    if not isinstance(quantiles, list) or not all(type(q) in (int, float) for q in quantiles):
        raise InstrumentError(f"{where}.loudness_quantiles_db is not a list of numbers.")
    if quantiles != sorted(quantiles):
        raise InstrumentError(f"{where}.loudness_quantiles_db does not rise.")
    if singers:
        if not isinstance(value.get("singers"), dict):
            raise InstrumentError(f"{where}.singers is missing.")
        for name, one in value["singers"].items():
            check_statistics(one, f"{where}.singers.{name[:40]}", singers=False)


def _check_numbers(table: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise InstrumentError(f"{where} is missing.")
    for key, value in table.items():
        if key == "histogram":
            edges, seconds = (value.get("edges_midi"), value.get("seconds")) if isinstance(value, dict) else (0, 0)
            lists = isinstance(edges, list) and isinstance(seconds, list)
            if not lists or not all(type(x) in (int, float) for x in edges + seconds):
                raise InstrumentError(f"{where}.histogram is not two lists of numbers.")
            if len(edges) != len(seconds) + 1 and edges + seconds:
                raise InstrumentError(f"{where}.histogram: {len(edges)} edges do not fit {len(seconds)} values.")
        elif value is not None and type(value) not in (int, float):
            raise InstrumentError(f"{where}.{key} is no number.")


def to_dict(value: Any) -> Any:
    """Settings as plain JSON values: dataclasses become dictionaries, tuples lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def from_dict(cls: type, data: Any, where: str) -> Any:
    """Build a settings dataclass from JSON. Unknown keys and other types are refused; absent keys keep defaults.

    Raises:
        InstrumentError: naming the key, what it is and what it has to be, or with the class's own sentence on ranges.
    """
    if not isinstance(data, dict):
        raise InstrumentError(f"{where} is not a table of settings.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise InstrumentError(f"{where}: unknown setting '{key[:60]}'.{hint}")
    values = {key: _typed(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise InstrumentError(f"{where}: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _typed(next(o for o in options if o is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (tuple, list) and isinstance(value, list) and len(value) <= 64:
        return origin(_typed(options[0], v, where) for v in value)
    if hint is float and type(value) in (int, float) and abs(value) <= 1e12:
        return float(value)
    if hint is int and type(value) is int and abs(value) < 2**31:
        return value
    if hint is bool and type(value) is bool:
        return value
    if hint is str and type(value) is str and len(value) <= 200 and value.isprintable():
        return value
    raise InstrumentError(f"{where} is {str(value)[:40]!r}, which is no {getattr(hint, '__name__', hint)} in range.")
