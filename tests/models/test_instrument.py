"""Instruments: what goes in comes out, and nothing else gets in.

Truths: the published parameter counts and the promised file sizes; the SHA-256 of the file; every single-bit flip is
noticed; hand-made hostile zips are refused with a sentence that names the reason; thousands of mutations end in a
refusal or in a whole instrument, never in another exception, a file on the disk, or a long wait.
"""

import contextlib
import hashlib
import io
import json
import pickle
import random
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import toy
from untrusted import put

from svclib.features.extract import FeatureSettings
from svclib.models import instrument, instrument_archive
from svclib.models.ddsp import model as ddsp
from svclib.utils import serialization
from svclib.utils.errors import ModelError

TINY = ddsp.DdspSettings(n_harmonics=5, n_noise_bands=3, rnn_channels=4, mlp_channels=4, layers_per_stack=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny instrument's file and its model."""
    model = instrument.build_model(TINY, toy.FEATURES, toy.STATISTICS, seed=3).eval()
    path = tmp_path_factory.mktemp("instruments") / "tiny.zip"
    instrument.save(
        path,
        model,
        toy.FEATURES,
        toy.STATISTICS,
        created="2026-11-21",
        trained_steps=7,
        validation_loss=4.5,
        singers=["Anna Grün"],
        config_text="import os  # never run\n",
    )
    return path, model


def repacked(tiny, change=None, **options):
    """The members of the tiny instrument, changed, in a zip as a file manager would write it."""
    with zipfile.ZipFile(tiny[0]) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    members = change(members) if change else members
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", options.get("method", zipfile.ZIP_DEFLATED)) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def with_json(members, change):
    """The members with another description, in which the change was made."""
    value = json.loads(members["instrument.json"])
    change(value)
    return {**members, "instrument.json": json.dumps(value).encode()}


def with_weights(members, data):
    """The members with other weights, whose checksum is right."""

    def say(value):
        digest = hashlib.sha256(data).hexdigest()
        value["members"]["weights.safetensors"] = {"bytes": len(data), "sha256": digest}

    return with_json({**members, "weights.safetensors": data}, say)


def refused(tmp_path, data, match):
    path = tmp_path / "bad one.zip"
    path.write_bytes(data)
    before = set(tmp_path.iterdir())
    with pytest.raises(ModelError, match=match) as caught:
        instrument.open(path)
    assert "bad one.zip" in str(caught.value) and len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    assert set(tmp_path.iterdir()) == before


# Round trip -----------------------------------------------------------------------------------------------------------


def test_what_goes_in_comes_out(tiny):
    path, model = tiny
    opened = instrument.open(path)
    assert opened.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (opened.name, opened.kind, opened.features, opened.statistics) == (
        "tiny",
        "ddsp",
        toy.FEATURES,
        toy.STATISTICS,
    )
    assert opened.model.settings == TINY and not opened.model.training
    assert opened.info["singers"] == ["Anna Grün"] and opened.info["trained_steps"] == 7
    assert opened.info["loss"] == {"kind": "ddsp", "fft_sizes": [2048, 1024, 512, 256, 128, 64], "log_rule": "v1"}
    assert opened.info["f0"]["method"] == "swift" and opened.info["f0"]["version"][0].isdigit()
    assert "consent" in opened.info["consent"] and "synthetic voice" in opened.info["consent"]
    batch = toy.ToyDataset().batch(0, 1, 2, 32)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in opened.model.state_dict().items())
    torch.testing.assert_close(opened.model.reconstruct(batch, 1), model.reconstruct(batch, 1), atol=2e-6, rtol=0)
    text = instrument.describe(opened)
    assert "Anna Grün" in text and "trained 7 steps, held-out loss 4.500" in text and opened.sha256[:8] in text


@pytest.mark.case("P21")
def test_exactly_three_members_and_the_same_bytes_again(tiny, tmp_path):
    path, model = tiny
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["instrument.json", "weights.safetensors", "config.gin"]
        assert archive.read("config.gin") == b"import os  # never run\n" and archive.testzip() is None
    opened = instrument.open(path)
    again = instrument.save(
        tmp_path / "tiny.zip",
        opened.model,
        opened.features,
        opened.statistics,
        created="2026-11-21",
        trained_steps=7,
        validation_loss=4.5,
        singers=["Anna Grün"],
        config_text="import os  # never run\n",
    )
    assert again.read_bytes() == path.read_bytes()


def test_opening_draws_no_random_number(tiny):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    instrument.open(tiny[0])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.case("P23")
@pytest.mark.parametrize("z_dims, parameters, limit_mb", [(0, 4_821_670, 20), (16, 7_251_186, 30)])
def test_sizes_of_the_published_networks(tmp_path, z_dims, parameters, limit_mb):
    features = FeatureSettings()
    model = instrument.build_model(ddsp.DdspSettings(z_dims=z_dims), features, None)
    singers = {f"singer {i}": {**toy.STATISTICS, "loudness_quantiles_db": [-20.123456789] * 1000} for i in range(10)}
    path = instrument.save(
        tmp_path / "voice.zip", model, features, {**toy.STATISTICS, "singers": singers}, created="2026-11-21"
    )
    assert sum(p.numel() for p in instrument.open(path).model.parameters()) == parameters
    assert 4 * parameters < path.stat().st_size < limit_mb * 1e6


@pytest.mark.case("P21")
def test_no_file_is_overwritten_unasked(tiny, tmp_path):
    model, written = tiny[1], []
    for _ in range(3):
        written.append(instrument.save(tmp_path / "a.zip", model, toy.FEATURES, toy.STATISTICS, created="1").name)
    assert written == ["a.zip", "a 2.zip", "a 3.zip"]
    before = (tmp_path / "a 2.zip").read_bytes()
    path = instrument.save(
        tmp_path / "a.zip", model, toy.FEATURES, toy.STATISTICS, created="2", name="New", overwrite=True
    )
    assert path.name == "a.zip" and instrument.open(path).name == "New"
    assert len(list(tmp_path.iterdir())) == 3 and (tmp_path / "a 2.zip").read_bytes() == before


@pytest.mark.case("C10")
def test_bad_weights_are_not_saved(tmp_path):
    model = instrument.build_model(TINY, toy.FEATURES, None)
    with torch.no_grad():
        model.decoder.out.bias[0] = float("nan")
    with pytest.raises(ModelError, match="decoder.out.bias.*not finite"):
        instrument.save(tmp_path / "a.zip", model, toy.FEATURES, toy.STATISTICS, created="1")
    with pytest.raises(ModelError, match="no statistics"):
        instrument.save(tmp_path / "a.zip", model, toy.FEATURES, {}, created="1")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_instruments(tiny, tmp_path):
    (tmp_path / "good.zip").write_bytes(tiny[0].read_bytes())
    (tmp_path / "Broken.zip").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / ".hidden.zip").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("")
    broken, good = instrument.list_folder(tmp_path)
    assert (good.name, good.kind, good.problem, good.path.name) == ("tiny", "ddsp", None, "good.zip")
    assert "Broken.zip" in broken.problem and broken.kind is None
    assert instrument.list_folder(tmp_path / "absent") == []


@pytest.mark.case("C16")
def test_two_instruments_of_one_name_are_told_apart(tiny, tmp_path):
    """Menus name the files; what an instrument says of itself begins with its name and eight digits of its SHA-256."""
    other = tmp_path / "of a friend.zip"
    (tmp_path / "tiny.zip").write_bytes(tiny[0].read_bytes())
    renamed = repacked(tiny, lambda members: with_json(members, lambda value: value["info"].update(singers=["B"])))
    other.write_bytes(renamed)
    listed = instrument.list_folder(tmp_path)
    assert [entry.name for entry in listed] == ["tiny", "tiny"] and len({entry.path.name for entry in listed}) == 2
    said = [instrument.describe(instrument.open(entry.path)).splitlines()[0] for entry in listed]
    digests = [hashlib.sha256(entry.path.read_bytes()).hexdigest()[:8] for entry in listed]
    assert all(f"tiny: a ddsp instrument, file {digest}" in line for digest, line in zip(digests, said, strict=True))


@pytest.mark.case("P25", "C12")
def test_an_instrument_of_the_first_format_still_opens_and_sounds_the_same():
    opened = instrument.open(Path(__file__).parents[1] / "fixtures" / "instrument_v1.zip")
    batch = toy.ToyDataset().batch(0, 1, 1, 32)
    audio = opened.model.reconstruct(batch, 1)[0, :512].numpy()
    expected = np.frombuffer((Path(__file__).parents[1] / "fixtures" / "instrument_v1.f32").read_bytes(), "<f4")
    np.testing.assert_allclose(audio, expected, atol=2e-5)


def test_what_could_not_be_opened_again_is_not_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(instrument_archive.MAX_BYTES, "weights.safetensors", 1000)
    with pytest.raises(ModelError, match="weights.safetensors has .* MB"):
        instrument.save(tmp_path / "large.zip", tiny[1], toy.FEATURES, toy.STATISTICS, created="x")
    assert list(tmp_path.iterdir()) == []


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.case("C13", "J2")
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_noticed(tiny, tmp_path, count):
    data, rng, path = tiny[0].read_bytes(), random.Random(count), tmp_path / "flipped.zip"
    ends = [*range(8 * 60), *range(8 * (len(data) - 400), 8 * len(data))]  # local header, directory, end, seal
    for bit in rng.sample(ends, count // 2) + rng.sample(range(8 * len(data)), count // 2):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        with pytest.raises(ModelError):
            instrument.open(path)


@pytest.mark.case("C1")
def test_every_cut_is_noticed(tiny, tmp_path):
    data = tiny[0].read_bytes()
    for n in [*range(0, 40), *range(40, len(data), 211), len(data) - 1]:
        (tmp_path / "cut.zip").write_bytes(data[:n])
        with pytest.raises(ModelError):
            instrument.open(tmp_path / "cut.zip")


@pytest.mark.case("C14")
def test_a_zip_packed_anew_is_accepted(tiny, tmp_path):
    def like_a_mac(m):
        inside = {f"My voice/{k}": v for k, v in m.items()}
        return {"My voice/": b"", **inside, "__MACOSX/._My voice": b"x", "My voice/.DS_Store": b"y"}

    for name, data in {"plain": repacked(tiny), "mac": repacked(tiny, like_a_mac)}.items():
        (tmp_path / f"{name}.zip").write_bytes(data)
        opened = instrument.open(tmp_path / f"{name}.zip")
        assert opened.name == "tiny" and opened.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.case("C14")
@pytest.mark.parametrize("member", ["weights.safetensors", "config.gin"])
def test_a_member_exchanged_in_a_zip_packed_anew_is_refused(tiny, tmp_path, member):
    """The zip's own checksums are right and nothing is sealed; the description still tells the SHA-256 of each."""

    def exchanged(members):
        data = bytearray(members[member])
        data[-2] ^= 1
        return {**members, member: bytes(data)}

    refused(tmp_path, repacked(tiny, exchanged), f"{member} is damaged")


@pytest.mark.case("C1")
def test_things_that_are_no_instruments(tiny, tmp_path):
    with pytest.raises(ModelError, match="There is no instrument"):
        instrument.open(tmp_path / "absent.zip")
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(ModelError, match="folder"):
        instrument.open(tmp_path / "folder.zip")
    (tmp_path / "folder.zip").rmdir()
    refused(tmp_path, b"", "empty")
    refused(tmp_path, b"<!DOCTYPE html><title>Quota exceeded</title>", "not a zip")
    refused(tmp_path, tiny[0].read_bytes() + b"\n", "after its end")
    refused(
        tmp_path, repacked(tiny, lambda m: {"instrument.json": m["instrument.json"]}), "holds no weights.safetensors"
    )


PEERS = {
    "DDSP": (["ckpt-3000.index", "ckpt-3000.data-00000-of-00001", "dataset_statistics.pkl", "operative_config-0.gin"]),
    "RVC": ["voice.pth", "added_IVF256_Flat_nprobe_1.index"],
    "so-vits-svc": ["G_80000.pth", "config.json"],
    "Diff-SVC": ["model_ckpt_steps_100000.ckpt", "config.yaml"],
    "pickle format": ["model.pt", "config.json"],
}


@pytest.mark.case("C15")
@pytest.mark.parametrize("peer", PEERS)
def test_other_systems_files_are_recognised(tiny, tmp_path, peer):
    refused(tmp_path, repacked(tiny, lambda _: {n: b"x" for n in PEERS[peer]}), f"this is .*{peer}")


# Hostile files --------------------------------------------------------------------------------------------------------


class Payload:
    """A pickle that would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.case("C2", "C4")
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/x",
        "C:\\x",
        "..\\x",
        "evil.py",
        "x.gin",
        "a.pkl",
        "weights.safetensors\0.py",
        "wеights.safetensors",
        "config.gin/x",
        "n" * 300,
        "instrument.json/",
    ],
)
def test_other_entries_are_refused(tiny, tmp_path, name):
    refused(
        tmp_path, repacked(tiny, lambda m: {**m, name.rstrip("/") if "json" not in name else "sub/x": b"x"}), "holds"
    )


@pytest.mark.case("C3", "C4", "C6")
def test_links_encryption_doubles_and_methods_are_refused(tiny, tmp_path):
    def entry(change, method=zipfile.ZIP_STORED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive, zipfile.ZipFile(tiny[0]) as source:
            for name in source.namelist():
                info = zipfile.ZipInfo(name)
                info.compress_type = method
                if name == "config.gin":
                    change(info)
                archive.writestr(info, source.read(name))
        return buffer.getvalue()

    refused(tmp_path, entry(lambda i: setattr(i, "external_attr", 0o120777 << 16)), "link")
    refused(tmp_path, entry(lambda i: None, zipfile.ZIP_LZMA), "lzma")
    refused(tmp_path, entry(lambda i: None, zipfile.ZIP_BZIP2), "bzip2")
    locked = bytearray(entry(lambda i: None))
    at = locked.index(b"PK\x01\x02", locked.index(b"PK\x01\x02", locked.index(b"PK\x01\x02") + 1) + 1)
    locked[at + 8] |= 1
    refused(tmp_path, bytes(locked), "protected by a password")
    buffer = io.BytesIO(repacked(tiny))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("config.gin", b"second")
    refused(tmp_path, buffer.getvalue(), "two files of one name")


@pytest.mark.parametrize(
    "size, packed, refused",
    [
        (65 << 20, 3 << 20, True),
        (63 << 20, 3 << 20, False),
        (50_000, 240, True),
        (50_000, 260, False),
        (19_000, 20, False),
    ],
)
def test_how_well_weights_may_pack(size, packed, refused):
    """At most 20 to 1 above 64 MB, 200 to 1 below; the first 20,000 bytes do not count."""
    entries = [zipfile.ZipInfo(name) for name in instrument_archive.MEMBERS]
    weights = next(e for e in entries if e.filename == "weights.safetensors")
    weights.file_size, weights.compress_size = size, packed
    with pytest.raises(ModelError, match="would unpack to") if refused else contextlib.nullcontext():
        instrument_archive._check_entries(entries)


@pytest.mark.case("C5")
def test_bombs_are_refused_quickly(tiny, tmp_path):
    zeros = bytes(200 << 20)
    bombs = [
        repacked(tiny, lambda m: {**m, "weights.safetensors": zeros}),
        repacked(tiny, lambda m: {**m, "config.gin": zeros[: 50 << 20]}),
        repacked(tiny, lambda m: {**m, **{f"f{i}": b"" for i in range(5000)}}),
        repacked(tiny, lambda m: {**m, "inner.zip": b"PK"}),
    ]
    # a directory entry that lies about the size of what it packs
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = packed.compress(zeros[: 64 << 20]) + packed.flush()
    honest = repacked(tiny, lambda m: {**m, "config.gin": b"c" * 999})
    bombs.append(honest.replace(struct.pack("<I", 999), struct.pack("<I", 100)))
    assert len(stream) < 1 << 20
    for bomb in bombs:
        (tmp_path / "bomb.zip").write_bytes(bomb)
        started = time.process_time()
        with pytest.raises(ModelError):
            instrument.open(tmp_path / "bomb.zip")
        assert time.process_time() - started < 1.0


@pytest.mark.case("P22", "C7")
def test_a_pickle_in_place_of_weights_is_never_loaded(tiny, tmp_path):
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    refused(tmp_path, repacked(tiny, lambda m: with_weights(m, payload)), "made for another model version")
    length = zipfile.ZipFile(tiny[0]).getinfo("weights.safetensors").file_size
    refused(tmp_path, repacked(tiny, lambda m: with_weights(m, payload.ljust(length, b"\0"))), "no valid header")
    assert not (tmp_path / "ran").exists()


def tensors_with(change):
    def make(members):
        tensors = safetensors.torch.load(members["weights.safetensors"])
        change(tensors)
        return with_weights(members, safetensors.torch.save(tensors))

    return make


@pytest.mark.case("C9", "C10")
def test_wrong_weights_are_refused(tiny, tmp_path):
    def one(value):
        return lambda t: t.__setitem__("decoder.out.bias", value)

    cases = {
        "shape": one(torch.zeros(3, 3)),
        "not float32": one(torch.zeros(9, dtype=torch.int32)),
        "not all finite": one(torch.full((9,), float("inf"))),
        "missing or too many": lambda t: t.__setitem__("extra", t.pop("decoder.out.bias")),
    }
    for match, change in cases.items():
        refused(tmp_path, repacked(tiny, tensors_with(change)), match)
    nan = one(torch.tensor([0.0] * 8 + [float("nan")]))
    refused(tmp_path, repacked(tiny, tensors_with(nan)), "not all finite")


@pytest.mark.case("C8")
def test_hostile_safetensors_headers_are_refused(tiny, tmp_path):
    with zipfile.ZipFile(tiny[0]) as archive:
        data = archive.read("weights.safetensors")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    first = sorted(header)[0]

    def weights(text, size=None):
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        body = struct.pack("<Q", len(text) if size is None else size) + text + data[8 + length :]
        return repacked(tiny, lambda m: with_weights(m, body))

    double = json.dumps(header)[:-1] + f', "{first}": {json.dumps(header[first])}}}'
    refused(tmp_path, weights(double.encode()), "duplicate key")
    refused(tmp_path, weights(header, size=2**63), "no valid header")
    refused(tmp_path, weights(b"[" * 5000), "nested too deeply|not plain JSON")
    overlap = {k: {**v, "data_offsets": header[first]["data_offsets"]} for k, v in header.items()}
    refused(tmp_path, weights(overlap), "cannot be read")
    refused(tmp_path, weights({**header, "__metadata__": {"a": "b"}}), "missing or too many")
    huge = {**header, first: {**header[first], "shape": [2**50, 4]}}
    refused(tmp_path, weights(huge), "shape")


HOSTILE = {
    "unknown key": (put("extra", 1), "unknown key 'extra'"),
    "unknown setting": (put("model", "n_harmonic", 5), "Did you mean 'n_harmonics'"),
    "huge": (put("model", "rnn_channels", 10**9), "rnn_channels"),
    "largest allowed": (put("model", "rnn_channels", 4096), "made for another model version"),
    "huge reverb": (put("model", "reverb_samples", 480000), "made for another model version"),
    "negative": (put("model", "n_harmonics", -1), "n_harmonics"),
    "string for int": (put("model", "n_harmonics", "5"), "model.n_harmonics is '5'"),
    "fraction for int": (put("model", "n_harmonics", 5.5), "model.n_harmonics"),
    "bool for int": (put("model", "n_harmonics", True), "model.n_harmonics"),
    "list for text": (put("model", "log_rule", ["v1"]), "model.log_rule"),
    "other shape": (put("model", "n_harmonics", 6), "made for another model version"),
    "hop": (put("features", "hop_samples", 0), "hop_samples|features"),
    "rate": (put("features", "sample_rate_hz", 10**15), "sample_rate_hz"),
    "newer": (put("format_version", 2), "newer svclib"),
    "older": (put("format_version", 0), "format 0"),
    "version text": (put("format_version", "1"), "format_version"),
    "other format": (put("format", "RVC"), "not one of svclib's"),
    "other kind": (put("kind", "__import__"), "unknown here"),
    "kind of model": (put("model", "kind", "diffwave"), "kind"),
    "control characters": (put("name", "a\x1b[31m"), "not printable"),
    "long name": (put("name", "a" * 256), "255 characters"),
    "long text": (put("info", "licence", "a" * 30000), "20000 characters"),
    "steps": (put("info", "trained_steps", -5), "out of range"),
    "no statistics": (put("statistics", {}), "statistics"),
    "text statistics": (put("statistics", "f0_midi", "mean_note", "60"), "f0_midi.mean_note"),
    "falling quantiles": (put("statistics", "loudness_quantiles_db", [1.0, 0.0]), "is not a list of rising numbers"),
    "histogram": (put("statistics", "f0_midi", "histogram", "seconds", [1.0]), "histogram"),
    "member": (put("members", "x", {"bytes": 1, "sha256": ""}), "members"),
}


@pytest.mark.case("C11", "C12")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_descriptions_are_refused(tiny, tmp_path, case):
    change, match = HOSTILE[case]
    data = repacked(tiny, lambda m: with_json(m, change))
    started = time.process_time()
    refused(tmp_path, data, match)
    assert time.process_time() - started < 1.0


@pytest.mark.case("C11")
@pytest.mark.parametrize(
    "text, match",
    [
        (b'{"format": NaN}', "not a finite number"),
        (b'{"format": 1e999}', "not a finite number"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not a finite number"),
        (b'{"format": 1, "format": 2}', "duplicate key"),
        (b"[" * 5000, "nested too deeply|would unpack|not plain JSON"),  # newer Pythons read deeper
        (b'"' + b"a" * 10, "not plain JSON"),
        (b"\xff\xfe", "not plain JSON"),
        (b"null", "not one of svclib's"),
    ],
)
def test_hostile_json_is_refused(tiny, tmp_path, text, match):
    refused(tmp_path, repacked(tiny, lambda m: {**m, "instrument.json": text}), match)


def mutated(tiny, rng):
    """A random mutation of the file, or of a member with checksums made right again."""
    data = bytearray(tiny[0].read_bytes())
    if rng.random() < 0.5:
        kind = rng.randrange(5)
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(len(data) - 400, len(data))
        if kind == 0:
            return bytes(data[:at])
        if kind == 1:
            return bytes(data[:at] + rng.randbytes(rng.randrange(1, 30)) + data[at:])
        if kind == 2:
            return bytes(data[:at] + data[at + rng.randrange(1, 30) :])
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(at, len(data))] = rng.randrange(256)
        return bytes(data)

    def change(members):
        name = rng.choice(list(members))
        inner = bytearray(members[name])
        kind = rng.randrange(6)
        if kind == 0:
            inner = inner[: rng.randrange(len(inner) + 1)]
        elif kind == 1:
            inner = bytearray(rng.choice([b"[]", b"{}", b"null", b"[" * 9999, b'{"a":1e999}', bytes(len(inner))]))
        elif kind == 2:
            members = {**members, rng.choice(["../x", "a/b", "x.pkl", "__MACOSX/x", "config.gin2"]): b"x"}
        elif kind == 3:
            members = {k: v for k, v in members.items() if k != name}
            return members
        else:
            for _ in range(rng.randrange(1, 9)):
                inner[rng.randrange(len(inner))] = rng.randrange(256)
        members = {**members, name: bytes(inner)}
        try:
            raw = json.loads(members["instrument.json"])
            for member in ("weights.safetensors", "config.gin"):
                body = members[member]
                raw["members"][member] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            return {**members, "instrument.json": json.dumps(raw).encode()}
        except (ValueError, KeyError, TypeError, RecursionError):
            return members

    return repacked(tiny, change, method=rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations(tiny, tmp_path, count):
    rng, path, slowest, accepted = random.Random(count), tmp_path / "mutant.zip", 0.0, 0

    def look() -> tuple[float, bool]:
        started = time.process_time()
        try:
            opened = instrument.open(path)
        except ModelError as error:
            assert len(str(error)) < 500
            return time.process_time() - started, False
        assert all(bool(torch.isfinite(p).all()) for p in opened.model.parameters())
        instrument.describe(opened)
        return time.process_time() - started, True

    for _ in range(count):
        path.write_bytes(mutated(tiny, rng))
        took, whole = look()
        if took > 0.2:  # the file's cost comes again, that of this process's garbage does not
            took = min(took, look()[0])
        slowest, accepted = max(slowest, took), accepted + whole  # whole: other weights, harmless text, nothing changed
    assert list(tmp_path.iterdir()) == [path]
    assert slowest < 0.25 and accepted < 0.4 * count


@pytest.mark.slow
def test_memory_of_hostile_files(tiny, tmp_path):
    """Opening each of them adds less than 300 MB."""
    import resource

    change = HOSTILE["largest allowed"][0]
    (tmp_path / "a.zip").write_bytes(repacked(tiny, lambda m: with_json(m, change)))
    (tmp_path / "b.zip").write_bytes(repacked(tiny, lambda m: {**m, "weights.safetensors": bytes(300 << 20)}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("a.zip", "b.zip"):
        with pytest.raises(ModelError):
            instrument.open(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_settings_survive_json():
    for value in (TINY, toy.FEATURES, ddsp.DdspSettings(), FeatureSettings()):
        text = json.dumps(serialization.to_dict(value))
        assert serialization.from_dict(type(value), serialization.strict_json(text.encode(), "x"), "x") == value
