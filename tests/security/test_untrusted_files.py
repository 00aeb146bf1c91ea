"""Untrusted files: nothing in them runs, nothing is written outside, and what is wrong with them is one sentence,
quickly and in little memory.

Thousands of mutations of every kind of file a person may be given (``tests/helpers/untrusted.py`` makes them from a
seed), and crafted attacks, each of which would succeed against a careless reader. A watch over the process (Python's
audit events) notes every program started, connection opened and file written outside the test's folder.
"""

import gc
import hashlib
import io
import json
import pickle
import random
import re
import shutil
import stat
import struct
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import ipywidgets as W
import numpy as np
import pytest
import safetensors.torch
import torch
import untrusted
from untrusted import (
    WATCH,
    checkpoint,
    measured,
    members_of,
    put,
    require_sentence,
    trace_file,
    vocoder_zip,
    with_raw,
    zip_of,
)

from svclib.analysis import html as page
from svclib.analysis import player, trace
from svclib.models import instrument
from svclib.models.vocoders import auto as vocoding
from svclib.notebooks import base as widgets
from svclib.utils import config, download
from svclib.utils.errors import AudioError, ConfigError, ConversionError, ModelError, StorageError

SECONDS, MEGABYTES = 0.25, 300.0
SENTENCES = (ModelError, ModelError, ConversionError, AudioError, ConfigError, StorageError)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Well-formed files by kind."""
    found = untrusted.instruments(tmp_path_factory.mktemp("made"))
    found |= {"vocoder": vocoder_zip(), "trace": trace_file(), "recordings": untrusted.recordings()}
    gc.collect()
    gc.freeze()  # collecting what pytest and torch hold takes 0.2 s at any moment and is no cost of a file
    yield {**found, "preset": untrusted.PRESET}
    gc.unfreeze()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a program in it that a careless reader would run, and a cache beside it."""
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    for name in ("base.gin", "ddsp_small.gin", "evil.gin"):
        (tmp_path / name).write_text("import evil\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("evil", None)


SUFFIX = {"vocoder": "zip", "trace": "npz", "recordings": "zip", "preset": "gin"}


def open_one(kind: str, path: Path):
    """Do with a file what a person does with it, as far as reading and showing what it says."""
    if kind == "preset":
        return config.load([path])
    if kind == "trace":
        found = trace.load(path)
        return player.document([player.Run(found)]) if found.kind == "mel" else ""
    if kind == "recordings":
        return download.fetch(path, path.parent / "into")
    if kind == "vocoder":
        return vocoding.load_vocoder(path)
    opened = instrument.open(path)
    assert all(bool(torch.isfinite(p).all()) for p in opened.model.parameters())
    return page.text(instrument.describe(opened))


def opened_or_said(kind: str, path: Path, here: Path) -> str | None:
    """The sentence that refuses a file, or None; whatever else happened fails the test."""
    said = None
    with WATCH.over(here), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            open_one(kind, path)
        except SENTENCES as error:
            said = str(error)
    assert not WATCH.seen, (WATCH.seen, said)
    assert not (here / "ran").exists() and "evil" not in sys.modules
    if said is not None:
        require_sentence(said, "bad")
    return said


FUZZED = {
    "ddsp": (untrusted.other_instrument, 2500, 0.6),
    "diffusion": (untrusted.other_instrument, 1500, 0.6),
    "diffwave": (untrusted.other_instrument, 1000, 0.6),
    "harmonic": (untrusted.other_instrument, 500, 0.6),
    "vocoder": (untrusted.other_vocoder, 1000, 0.6),
    "trace": (untrusted.other_arrays, 1500, 0.6),
    "recordings": (untrusted.other_recordings, 1000, 0.7),
    "preset": (untrusted.other_preset, 1000, 0.7),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("share", [30, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FUZZED)
def test_mutations_open_whole_or_are_refused_in_a_sentence(files, here, kind, share):
    change, count, most = FUZZED[kind]
    path, rng, accepted, slowest = here / f"bad.{SUFFIX.get(kind, 'zip')}", random.Random(share), 0, 0.0
    path.write_bytes(files[kind])
    assert opened_or_said(kind, path, here) is None
    for i in range(count // share):
        path.write_bytes(change(files[kind], rng))
        for made in ("into", "cache"):
            shutil.rmtree(here / made, ignore_errors=True)
        with measured() as cost:
            said = opened_or_said(kind, path, here)
        accepted += said is None
        if said is not None:
            slowest = max(slowest, cost.seconds)
            assert cost.seconds < SECONDS and cost.megabytes < MEGABYTES, (i, cost, said)
    assert 0 < accepted < most * (count // share)
    print(f"{kind}: {count // share} files, {accepted} whole, slowest refusal {slowest:.3f} s")


# Crafted --------------------------------------------------------------------------------------------------------------


class Payload:
    """A pickle that leaves a file behind."""

    def __reduce__(self):
        return (open, ("ran", "w"))


def with_entry(data: bytes, name: str, body: bytes = b"x", **fields) -> bytes:
    buffer = io.BytesIO(data)
    entry = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(entry, key, value)
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(entry, body)
    return buffer.getvalue()


def bomb(data: bytes, name: str, start: bytes, n: int) -> bytes:
    """The zip ``data`` and in it a member of ``start`` and ``n`` zeros, a thousandth of that packed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    mega = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream, crc, size = first + mega * (n >> 20) + b"\3\0", zlib.crc32(start), len(start) + n
    for _ in range(n >> 20):
        crc = zlib.crc32(bytes(1 << 20), crc)
    members = {k: v for k, v in members_of(data).items() if k != name} if data else {}
    whole = with_entry(zip_of(members), name, stream)
    sizes = struct.pack("<III", zlib.crc32(stream), len(stream), len(stream))
    whole = whole.replace(sizes, struct.pack("<III", crc, len(stream), size))
    head, directory = whole.rindex(b"PK\3\4"), whole.rindex(b"PK\1\2")
    out = bytearray(whole)
    out[head + 8 : head + 10] = out[directory + 10 : directory + 12] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    return bytes(out)


def renamed(data: bytes, name: bytes, other: bytes) -> bytes:
    assert len(name) == len(other) and name in data
    return data.replace(name, other)


def header_of(shape: str, descr: str = "'<f2'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def with_array(name: str, body: bytes) -> bytes:
    return zip_of({**members_of(trace_file()), f"{name}.npy": body})


def expanded() -> bytes:
    """A checkpoint whose tensor of 10^12 numbers is one stored number shown many times."""
    return vocoder_zip(
        {
            "generator": {
                "conv_pre.weight_v": torch.zeros(1).expand(10**6, 10**6),
                "conv_pre.weight_g": torch.zeros(1).expand(10**6, 1),
            }
        }
    )


def packed_checkpoint() -> bytes:
    inner = checkpoint({"generator": {"x": torch.zeros(1 << 18)}})
    name = next(n for n in members_of(inner) if n.endswith("data/0"))
    config = json.dumps(untrusted.NSF).encode()
    return zip_of({"model.ckpt": bomb(inner, name, b"", 256 << 20), "config.json": config})


def nan_weights(data: bytes) -> bytes:
    members = members_of(data)
    tensors = safetensors.torch.load(members["weights.safetensors"])
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    members["weights.safetensors"] = body = safetensors.torch.save(tensors)
    raw = json.loads(members["instrument.json"])
    raw["members"]["weights.safetensors"] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return zip_of({**members, "instrument.json": json.dumps(raw).encode()})


def many(n: int, data: bytes = b"") -> bytes:
    """A zip with a directory of ``n`` entries and an end record that admits to 1."""
    head = zip_of({"a.wav": data})
    at, end = head.index(b"PK\1\2"), head.index(b"PK\5\6")
    directory = head[at:end] * n
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(directory), at, 0)
    return head[:at] + directory + tail


def overlapping(data: bytes) -> bytes:
    """A zip whose directory names the same large array again and again."""
    members = members_of(data)
    members["x_t.npy"] = header_of(f"(4, 8, {1 << 18})") + bytes(2 * 4 * 8 * (1 << 18))
    whole = zip_of(members)
    at, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    one = whole.index(b"PK\1\2", whole.index(b"x_t.npy", at) - 46)
    entry = whole[one : one + 46 + 7]
    extra = b"".join(entry[:-7] + b"%07d" % i for i in range(60))
    n = len(members) + 60
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, end - at + len(extra), at, 0)
    return whole[:end] + extra + tail


def gin_text(line: str) -> bytes:
    return untrusted.PRESET + line.encode() + b"\n"


TINY = "ddsp"
CRAFTED = {
    # name: (kind, file from the well-formed ones, words of the sentence)
    "zip slip": (TINY, lambda f: with_entry(f[TINY], "../../evil.py"), "evil.py.*refused"),
    "absolute path": (TINY, lambda f: with_entry(f[TINY], "/etc/cron.d/x"), "refused"),
    "backslashes": (TINY, lambda f: with_entry(f[TINY], "..\\evil.py"), "refused"),
    "symlink": (
        TINY,
        lambda f: with_entry(
            zip_of({k: v for k, v in members_of(f[TINY]).items() if k != "config.gin"}),
            "config.gin",
            b"/etc/passwd",
            external_attr=(stat.S_IFLNK | 0o777) << 16,
        ),
        "link",
    ),
    "duplicate members": (TINY, lambda f: with_entry(f[TINY], "config.gin"), "two files of one name"),
    "names that differ in case": (TINY, lambda f: with_entry(f[TINY], "CONFIG.GIN"), "refused"),
    "NUL in a name": (TINY, lambda f: renamed(f[TINY], b"config.gin", b"config\0.py"), "refused|damaged|no instrument"),
    "prepended program": (TINY, lambda f: b"#!/bin/sh\ntouch ran\n" + f[TINY], "not a zip"),
    "data between the members": (TINY, lambda f: f[TINY][:400] + bytes(1 << 20) + f[TINY][400:], "damaged|explain"),
    "bomb": (TINY, lambda f: bomb(f[TINY], "weights.safetensors", b"", 400 << 20), "would unpack"),
    "100,000 entries": (TINY, lambda f: many(100_000), "holds"),
    "deep JSON": (TINY, lambda f: zip_of({**members_of(f[TINY]), "instrument.json": b'{"a":' * 10_000}), "JSON"),
    "huge number": (TINY, lambda f: zip_of({**members_of(f[TINY]), "instrument.json": b"9" * 4_000_000}), "finite"),
    "a million keys": (
        TINY,
        lambda f: zip_of(
            {**members_of(f[TINY]), "instrument.json": b"{" + b",".join(b'"%x":0' % i for i in range(200_000)) + b"}"}
        ),
        "more than 100000 keys",
    ),
    "NaN weights": (TINY, lambda f: nan_weights(f[TINY]), "not all finite"),
    "layers without end": (
        "diffusion",
        lambda f: with_raw(f["diffusion"], put("model", "n_layers", 2**31 - 1)),
        "n_layers is 2147483647",
    ),
    "content layers without end": (
        "diffusion",
        lambda f: with_raw(f["diffusion"], put("model", "content_layers", 10**8)),
        "content_layers",
    ),
    "steps without end": (
        "diffusion",
        lambda f: with_raw(f["diffusion"], put("model", "n_steps", 2**31 - 1)),
        "n_steps",
    ),
    "a network too large": (
        "diffusion",
        lambda f: with_raw(
            f["diffusion"],
            lambda r: r["model"].update(channels=4096, n_layers=128, content_channels=4096, content_layers=64),
        ),
        "at most 250,000,000",
    ),
    "the largest diffwave": (
        "diffwave",
        lambda f: with_raw(f["diffwave"], lambda r: r["model"].update(channels=1024, n_layers=128, dilation_cycle=14)),
        "at most 250,000,000",
    ),
    "markup as a kind": (
        TINY,
        lambda f: with_raw(f[TINY], put("kind", "<img src=x onerror=alert(1)>")),
        "unknown here",
    ),
    "pickle as a checkpoint": ("vocoder", lambda f: vocoder_zip({"generator": Payload()}), "more than tensors"),
    "pickle without torch": (
        "vocoder",
        lambda f: zip_of({"model.ckpt": pickle.dumps(Payload()), "config.json": json.dumps(untrusted.NSF).encode()}),
        "more than tensors",
    ),
    "one number shown as 10^12": ("vocoder", lambda f: expanded(), "numbers of their own"),
    "checkpoint that unpacks to 256 MB": ("vocoder", lambda f: packed_checkpoint(), "more bytes"),
    "tar in place of a checkpoint": (
        "vocoder",
        lambda f: zip_of({**members_of(f["vocoder"]), "model.ckpt": bytes(10240)}),
        "tar archive",
    ),
    "byte order without end": (
        "vocoder",
        lambda f: zip_of(
            {
                **members_of(f["vocoder"]),
                "model.ckpt": zip_of(
                    {
                        k: b"[" * 9999 if k.endswith("byteorder") else v
                        for k, v in members_of(members_of(f["vocoder"])["model.ckpt"]).items()
                    }
                ),
            }
        ),
        "endian",
    ),
    "channels without end": (
        "vocoder",
        lambda f: vocoder_zip(
            config={
                **untrusted.NSF,
                "upsample_initial_channel": 4096,
                "resblock_kernel_sizes": [99999],
                "resblock_dilation_sizes": [[1] * 8],
            }
        ),
        "whole number from 1",
    ),
    "deep config.json": (
        "vocoder",
        lambda f: zip_of({**members_of(f["vocoder"]), "config.json": b"[" * 10**6}),
        "Recursion",
    ),
    "vocoder with a damaged directory": ("vocoder", lambda f: f["vocoder"].replace(b"PK\1\2", b"PK\1\3"), "bad.zip"),
    "pickled array": (
        "trace",
        lambda f: with_array("x_t", header_of("(1,)", "'|O'") + pickle.dumps(Payload())),
        "damaged",
    ),
    "array of 10^12": ("trace", lambda f: with_array("x_t", header_of("(1000000, 1000000)")), "damaged"),
    "array header of megabytes": ("trace", lambda f: with_array("x_t", header_of("(" + "1," * 30000 + ")")), "damaged"),
    "trace that unpacks to 400 MB": (
        "trace",
        lambda f: bomb(f["trace"], "low.npy", header_of(f"({200 << 20},)"), 400 << 20),
        "unpack to 419 MB",
    ),
    "trace of overlapping members": ("trace", lambda f: overlapping(f["trace"]), "unpack to|damaged"),
    "recordings outside": ("recordings", lambda f: with_entry(f["recordings"], "../../evil.wav"), "points outside"),
    "recording with a NUL": (
        "recordings",
        lambda f: renamed(f["recordings"], b"one.wav", b"on\0.wav"),
        "points outside",
    ),
    "link among recordings": (
        "recordings",
        lambda f: with_entry(f["recordings"], "l.wav", b"/etc/passwd", external_attr=(stat.S_IFLNK | 0o777) << 16),
        "link or a device",
    ),
    "recordings that unpack to 400 MB": (
        "recordings",
        lambda f: bomb(f["recordings"], "song.wav", b"", 400 << 20),
        "would unpack to 419 MB",
    ),
    "100,000 recordings": ("recordings", lambda f: many(100_000), "at most 50,000"),
    "a file where a folder is": ("recordings", lambda f: zip_of({"a": b"x", "a/b.wav": b"y"}), "File exists|folder"),
    "escape codes in a name": (
        "recordings",
        lambda f: with_entry(f["recordings"], "../\x1b[31m\n" + "x" * 500),
        "points outside",
    ),
    "gin import": ("preset", lambda f: gin_text("import evil"), "may import only"),
    "gin import behind a line end": ("preset", lambda f: gin_text("# read me\u2028import evil"), "control character"),
    "gin include of a neighbour": ("preset", lambda f: gin_text("include 'evil.gin'"), "may include only"),
    "gin include moved by a form feed": (
        "preset",
        lambda f: gin_text("# \x0c\ninclude 'base.gin'"),
        "control character",
    ),
    "gin macro that calls": ("preset", lambda f: gin_text("X = @os.system()"), "not a settings class"),
    "gin macro of itself": ("preset", lambda f: gin_text("SIZE = %SIZE"), "defined by itself"),
    "gin nested without end": ("preset", lambda f: gin_text("X = " + "[" * 50_000), "not gin syntax"),
    "gin number of 100,000 digits": ("preset", lambda f: gin_text("X = " + "9" * 100_000), "not gin syntax"),
    "gin of 100 MB": ("preset", lambda f: b"# x\n" * (25 << 20), "more than 200000 characters"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_files_are_refused_quickly_and_in_little_memory(files, here, case):
    kind, make, words = CRAFTED[case]
    good, path = here / f"good.{SUFFIX.get(kind, 'zip')}", here / f"bad.{SUFFIX.get(kind, 'zip')}"
    good.write_bytes(files[kind])
    open_one(kind, good)  # what is loaded once is loaded
    path.write_bytes(make(files))
    with measured() as cost:
        said = opened_or_said(kind, path, here)
    assert said is not None, "it was opened"
    assert re.search(words, said, re.S), said
    assert cost.seconds < SECONDS and cost.megabytes < MEGABYTES, cost


# Names become text ----------------------------------------------------------------------------------------------------

MARKUP = "</script><img src=x onerror=alert(1)>\"'><b>"


@pytest.mark.case("B9")
def test_names_from_files_stay_text_on_every_piece_of_a_page(tmp_path):
    tone = np.zeros(800, np.float32)
    head = {
        "schema": 1,
        "kind": "mel",
        "n_calls": 4,
        "info": {
            "label": MARKUP,
            "method": MARKUP,
            "seed": MARKUP,
            "notice": MARKUP,
            "mel": json.loads(np.load(io.BytesIO(trace_file()))["head"].tobytes())["info"]["mel"],
        },
    }
    (tmp_path / "a.npz").write_bytes(trace_file(head=head))
    (tmp_path / "<img src=x onerror=1>.wav").write_bytes(b"x")
    shown = player.document([player.Run(trace.load(tmp_path / "a.npz"))], title=MARKUP)
    pieces = [
        shown,
        page.frame(shown),
        page.player(tone, 8000, MARKUP, MARKUP),
        page.small_player(tone, 8000, MARKUP),
        page.notice(MARKUP),
        page.heading(MARKUP, MARKUP),
        page.paragraph(MARKUP),
        page.picture(b"x", MARKUP),
        page.table([MARKUP], [[MARKUP]]),
        page.download_link(tmp_path / "<img src=x onerror=1>.wav", MARKUP),
    ]
    for piece in pieces:
        assert "<img src=x" not in piece and "<b>" not in piece and "</script><" not in piece


@pytest.mark.case("B9")
def test_a_singers_name_is_no_markup_in_a_slider():
    """Of ipywidgets 7 and, because the hint is in it, of 8, a description becomes HTML."""
    slider = widgets.control(W.FloatSlider, MARKUP, "t-singer", f"share of {MARKUP}")
    assert page.text(MARKUP) in slider.description and MARKUP not in slider.description
    assert slider.description.count("<") == 2  # the element that holds the hint
