"""Untrusted files: well-formed small files of every kind, thousands of mutations of them, and a watch over what
opening one does.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import sys
import time
import wave
import zipfile
from pathlib import Path

import numpy as np
import torch

HOSTILE_NAMES = [
    "../x",
    "/etc/x",
    "C:\\x",
    "a/b",
    "x.pkl",
    "evil.py",
    "a\0b",
    "n" * 300,
    "x\n\x1b[31m",
    "a.json ",
    "..",
]
HOSTILE_VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    10**6,
    10**9,
    2**31 - 1,
    10**17,
    1e12,
    -1e12,
    1e-300,
    0.5,
    "",
    "x",
    "x" * 300,
    "<img src=x onerror=alert(1)>",
    "a\x1b[31m",
    "__import__('os')",
    "../../x",
    [],
    {},
    [[]],
    [[[[[[[[[]]]]]]]]],
    [1, 2, 3],
    [0] * 70,
    {"a": {}},
    {"__class__": "os"},
]


# The watch ------------------------------------------------------------------------------------------------------------


class Watch:
    """Notes what the process does that reading a file never needs: programs started, connections, files written."""

    def __init__(self):
        self.allowed, self.seen, self.on = "", [], False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
            self.seen.append((event, str(args)[:200]))
        elif event == "open" and isinstance(args[0], (str, bytes)) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            where = os.path.realpath(os.fsdecode(args[0]))
            if not where.startswith((self.allowed + os.sep, "/dev/")) and "__pycache__" not in where:
                self.seen.append((event, where))
        elif event in ("os.symlink", "os.link", "os.remove", "os.rename", "os.mkdir"):
            places = [os.path.realpath(os.fsdecode(a)) for a in args[:2] if isinstance(a, (str, bytes))]
            if any(not p.startswith(self.allowed) for p in places[-1:]):
                self.seen.append((event, str(places)))

    @contextlib.contextmanager
    def over(self, folder: Path):
        """Writing is allowed inside ``folder`` only; everything else that happens is in ``seen``."""
        self.allowed, self.seen, self.on = os.path.realpath(folder), [], True
        try:
            yield
        finally:
            self.on = False


WATCH = Watch()


@dataclasses.dataclass
class Cost:
    """What one call took."""

    seconds: float = 0.0
    megabytes: float = 0.0


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


@contextlib.contextmanager
def measured():
    """CPU seconds, and megabytes of memory above what the process had before (Linux; 0 elsewhere)."""
    cost, known = Cost(), os.access("/proc/self/clear_refs", os.W_OK)
    if known:
        Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("VmRSS:") if known else 0.0, time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.process_time() - started
        cost.megabytes = _status("VmHWM:") - before if known else 0.0


def require_sentence(text: str, name: str) -> None:
    """One or two plain sentences that name the file."""
    assert 10 < len(text) < 600, text
    assert text.isprintable() and text.rstrip().endswith((".", "?")), repr(text)
    assert name in text, (name, text)


# Mutations ------------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, inserted, removed or changed, half of the time near the end, where a zip's directory is."""
    out, kind = bytearray(data), rng.randrange(6)
    at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(max(0, len(out) - 400), len(out))
    if kind == 0:
        return bytes(out[:at])
    if kind == 1:
        return bytes(out[:at] + rng.randbytes(rng.randrange(1, 30)) + out[at:])
    if kind == 2:
        return bytes(out[:at] + out[at + rng.randrange(1, 30) :])
    if kind == 3:
        return rng.choice([b"PK", b"hello ", bytes(30), data[-60:]]) + data
    for _ in range(rng.randrange(1, 9)):
        out[rng.randrange(at, len(out))] = rng.choice([0, 255, rng.randrange(256)])
    return bytes(out)


def members_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def zip_of(members: dict[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def other_members(members: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """A zip's members with one cut, emptied, changed, renamed, dropped or added."""
    name, kind = rng.choice(list(members)), rng.randrange(6)
    if kind == 0:
        return {**members, name: members[name][: rng.randrange(len(members[name]) + 1)]}
    if kind == 1:
        return {**members, name: rng.choice([b"", b"[]", b"null", b"[" * 9999, bytes(len(members[name]))])}
    if kind == 2:
        return {**members, rng.choice(HOSTILE_NAMES): b"x"}
    if kind == 3:
        return {k: v for k, v in members.items() if k != name}
    if kind == 4:
        return {(rng.choice(HOSTILE_NAMES) if k == name else k): v for k, v in members.items()}
    return {**members, name: damaged(members[name] or b"x", rng)}


def places(value, path=()):
    """Every place in a JSON value as the keys that lead there; the first one is the whole."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def other_json(value, rng: random.Random):
    """A JSON value with one place in it replaced, removed, doubled or renamed."""
    found = list(places(value))
    made = json.loads(json.dumps(value))
    path = rng.choice(found[1:] or found)
    if not path:
        return rng.choice(HOSTILE_VALUES)
    node = made
    for key in path[:-1]:
        node = node[key]
    kind = rng.randrange(8)
    if kind == 0:
        del node[path[-1]]
    elif kind == 1 and isinstance(node, dict):
        node[str(path[-1]) + rng.choice(["", "s", "\0", "<b>"])] = node.pop(path[-1])
    elif kind == 2 and type(node[path[-1]]) in (int, float):
        node[path[-1]] = node[path[-1]] * rng.choice([-1, 2, 0.5, 10**6, 1e-9]) + rng.choice([0, 1])
    else:
        node[path[-1]] = rng.choice(HOSTILE_VALUES)
    return made


def other_instrument(data: bytes, rng: random.Random) -> bytes:
    """An instrument damaged as a file, in a member, or in what its description says, with checksums made right."""
    kind = rng.randrange(4)
    if kind == 0:
        return damaged(data, rng)
    members = members_of(data)
    if kind == 1:
        members = other_members(members, rng)
    try:
        raw = json.loads(members["instrument.json"])
        if kind > 1:
            raw = other_json(raw, rng)
        for member in ("weights.safetensors", "config.gin"):
            body = members[member]
            raw["members"][member] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        members["instrument.json"] = json.dumps(raw).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return zip_of(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def other_arrays(data: bytes, rng: random.Random) -> bytes:
    """A ``.npz`` damaged as a file, in a member, in an array or in its head."""
    kind = rng.randrange(4)
    if kind == 0:
        return damaged(data, rng)
    members = members_of(data)
    if kind == 1:
        return zip_of(other_members(members, rng), rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with np.load(io.BytesIO(data)) as found:
        arrays = dict(found)
    if kind == 2:
        head = other_json(json.loads(arrays["head"].tobytes()), rng)
        arrays["head"] = np.frombuffer(json.dumps(head).encode(), np.uint8)
    else:
        name = rng.choice(list(arrays))
        value = arrays[name]
        arrays[name] = rng.choice(
            [
                value[:1],
                value[None],
                value.astype(np.float64),
                value.astype("S3"),
                np.zeros(0, value.dtype),
                np.zeros((3, 3), value.dtype),
                value.astype(np.complex64),
                np.full(value.shape, np.nan),
                np.zeros((), "f2"),
                value.astype(bool),
                -value if value.dtype.kind == "f" else value[::-1],
            ]
        )
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def other_vocoder(data: bytes, rng: random.Random) -> bytes:
    """A vocoder's zip damaged as a file, in a member, in its checkpoint's own zip or in its config.json."""
    kind = rng.randrange(4)
    if kind == 0:
        return damaged(data, rng)
    members = members_of(data)
    if kind == 1:
        members = other_members(members, rng)
    elif kind == 2:
        inner = members_of(members["model.ckpt"])
        members["model.ckpt"] = zip_of(other_members(inner, rng))
    else:
        members["config.json"] = json.dumps(other_json(json.loads(members["config.json"]), rng)).encode()
    return zip_of(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def other_recordings(data: bytes, rng: random.Random) -> bytes:
    """A zip of recordings damaged as a file or in a member."""
    if rng.random() < 0.5:
        return damaged(data, rng)
    return zip_of(other_members(members_of(data), rng), rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


_LINES = [
    "import evil",
    "from os import path",
    "include 'base.gin'",
    "include '/etc/passwd'",
    "include 'evil.gin'",
    "os.system.command = 'true'",
    "X = @os.getpid()",
    "evil/ddsp.DdspSettings.n_harmonics = 3",
    "gin.macro.value = 1",
    "ddsp.DdspSettings.n_harmonics = %X",
    "X = %X",
    "ddsp.DdspSettings.kind = @config.preset()",
    "'''",
    "(",
    "\\",
    "ddsp.DdspSettings.fft_sizes = [" + "(" * 200,
    "ddsp.DdspSettings.n_harmonics = " + "9" * 6000,
    "a = {[]: 1}",
    "ddsp.DdspSettings.n_harmonics = '<img src=x onerror=alert(1)>'",
    "ddsp.DdspSettings:\n  n_harmonics = 4",
    "from __gin__ import dynamic_registration",
    "import svclib.ddsp as os",
    "x = 1e999",
    "ddsp.DdspSettings()",
]


def other_preset(data: bytes, rng: random.Random) -> bytes:
    """A gin text with lines added, removed, joined by what Python calls line ends, or with other signs in it."""
    lines = data.decode().split("\n")
    for _ in range(rng.randrange(1, 4)):
        kind, at = rng.randrange(6), rng.randrange(len(lines))
        if kind <= 1:
            lines.insert(at, rng.choice(_LINES))
        elif kind == 2:
            lines[at] += " # " + rng.choice("\x0b\x0c\x1c\x85\u2028\u2029\r\0") + rng.choice(_LINES)
        elif kind == 3:
            del lines[at : at + 1 + rng.randrange(2)]
            lines = lines or [""]
        elif kind == 4:
            tokens = lines[at].split(" ")
            tokens[rng.randrange(len(tokens))] = rng.choice(
                ["None", "-1", "1e9", "@", "%", "=", "\u202e", "'", "[1, 2]"]
            )
            lines[at] = " ".join(tokens)
        else:
            where = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:where] + chr(rng.randrange(1, 0x2100)) + lines[at][where:]
    text = "\n".join(lines).encode("utf-8", "replace")
    return damaged(text or b"x", rng) if rng.random() < 0.1 else text


def with_raw(data: bytes, change) -> bytes:
    """An instrument whose ``instrument.json`` was changed."""
    members = members_of(data)
    raw = json.loads(members["instrument.json"])
    change(raw)
    return zip_of({**members, "instrument.json": json.dumps(raw).encode()})


def put(*path_and_value):
    """A change for :func:`with_raw`: keys that lead to a value, and the new one."""
    *path, value = path_and_value

    def change(raw):
        for key in path[:-1]:
            raw = raw[key]
        raw[path[-1]] = value

    return change


# Well-formed files ----------------------------------------------------------------------------------------------------


def recordings() -> bytes:
    """A zip of two short recordings."""
    found = {}
    for name, f_hz in (("one.wav", 220.0), ("more/two.wav", 330.0)):
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((9000 * np.sin(2 * np.pi * f_hz * np.arange(400) / 8000)).astype("<i2").tobytes())
        found[name] = buffer.getvalue()
    return zip_of(found)


NSF = {
    "sampling_rate": 8000,
    "hop_size": 64,
    "num_mels": 8,
    "n_fft": 256,
    "win_size": 256,
    "fmin": 40,
    "fmax": 4000,
    "upsample_rates": [8, 8],
    "upsample_kernel_sizes": [16, 16],
    "upsample_initial_channel": 8,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "mini_nsf": True,
    "noise_sigma": 0.0,
}


def checkpoint(tensors) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def vocoder_zip(tensors=None, config=None) -> bytes:
    """A zip with an NSF-HiFiGAN checkpoint and its config.json."""
    from svclib.models.vocoders import nsf_hifigan

    torch.manual_seed(0)
    made = nsf_hifigan.NsfHifigan(nsf_hifigan.NsfSettings.from_json(NSF), "x").state_dict()
    text = json.dumps(NSF if config is None else config).encode()
    return zip_of(
        {"model.ckpt": checkpoint({"generator": dict(made)} if tensors is None else tensors), "config.json": text}
    )


def trace_file(**changes) -> bytes:
    """A small trace of a sampling run, as bytes of its ``.npz``."""
    from svclib.audio.mel import MelConfig

    rng, n = np.random.default_rng(0), 4
    contract = MelConfig(8000, 256, 256, 64, 8, 40.0, 4000.0)
    alpha = np.linspace(0.1, 0.95, n)
    head = {
        "schema": 1,
        "kind": "mel",
        "n_calls": n,
        "info": {"label": "a run", "method": "ddim", "seed": 3, "notice": "", "mel": contract.to_json()},
    }
    arrays = {
        "head": head,
        "x_t": rng.normal(size=(n, 8, 20)).astype("f2"),
        "x0_hat": rng.normal(size=(n, 8, 20)).astype("f2"),
        "result": rng.normal(size=(8, 20)).astype("f2"),
        "t": np.linspace(900, 10, n),
        "alpha": alpha,
        "sigma": np.sqrt(1 - alpha**2),
        "index": np.arange(n),
        "low": np.full(8, -11.0, "f4"),
        "high": np.full(8, 1.0, "f4"),
        "feature step": rng.normal(size=(n, 6)).astype("f4"),
        "condition f0_hz": np.full(20, 220.0, "f4"),
        **changes,
    }
    if isinstance(arrays["head"], dict):
        arrays["head"] = np.frombuffer(json.dumps(arrays["head"]).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **{k: v for k, v in arrays.items() if v is not None})
    return buffer.getvalue()


def instruments(folder: Path) -> dict[str, bytes]:
    """A tiny instrument of every kind: ddsp, diffusion with its vocoder, diffwave, harmonic."""
    import toy

    from svclib.audio.mel import MelConfig
    from svclib.features.extract import FeatureSettings
    from svclib.models import instrument
    from svclib.models.ddsp import model as ddsp
    from svclib.models.diffusion import model as diffusion
    from svclib.models.diffwave import model as diffwave
    from svclib.models.vocoders import harmonic

    voice = harmonic.HarmonicSettings(n_harmonics=4, n_noise_bands=3, channels=4, n_layers=1, fft_sizes=(64,))
    mel = FeatureSettings(8000, 64, mel=MelConfig(8000, 256, 256, 64, 8, 40.0, 4000.0))
    small = ddsp.DdspSettings(n_harmonics=5, n_noise_bands=3, rnn_channels=4, mlp_channels=4, layers_per_stack=1)
    settings = diffusion.DiffusionSettings(
        code_dims=3,
        content_channels=4,
        content_layers=1,
        channels=4,
        n_layers=2,
        condition_dims=4,
        coarse_channels=4,
        coarse_layers=1,
        sampler_steps=4,
        vocoder=voice,
    )
    one = {k: v for k, v in toy.STATISTICS.items() if k != "singers"}
    statistics = {
        **toy.STATISTICS,
        "log_mel": {"min": [-11.0] * 8, "max": [1.0] * 8},
        "singers": {"ann": one, "bea": one},
    }
    kinds = {
        "ddsp": (small, toy.FEATURES, toy.STATISTICS),
        "diffusion": (settings, mel, statistics),
        "diffwave": (
            diffwave.DiffWaveSettings(condition="mel", channels=4, n_layers=2, condition_dims=4),
            mel,
            statistics,
        ),
        "harmonic": (voice, mel, statistics),
    }
    made = {}
    for kind, (settings, features, statistics) in kinds.items():
        model = instrument.build_model(settings, features, statistics)
        path = instrument.save(folder / f"{kind}.zip", model, features, statistics, created="2026-11-21")
        made[kind] = path.read_bytes()
    return made


PRESET = b"""from __gin__ import dynamic_registration
include 'ddsp_small.gin'
from svclib import ddsp
from svclib import training
# a preset of somebody's own
SIZE = 6
ddsp.DdspSettings.n_harmonics = %SIZE
ddsp.DdspSettings.fft_sizes = (64, 128)
training.TrainingSettings.steps = 3
"""
