"""Truths held here: digits of one speaker are recognised by comparing their codes with those of another, neither of
whom the encoder was trained on, far better than by the cepstra it reads; the code of a recording is the same whatever
pitch its envelope is sampled at, more than that of another word; chunks equal the whole; nothing is random."""

import time
import zlib

import numpy as np
import pytest
import torch

from svclib.audio import io
from svclib.audio.mel import MelConfig
from svclib.data.dataset import ContentCache
from svclib.features import extract
from svclib.features.extract import ConditionInputs
from svclib.models.content import words
from svclib.models.diffusion import DiffusionSettings

FEATURES = extract.FeatureSettings(
    sample_rate_hz=22050, hop_samples=256, loudness_n_fft=1024, f0_method="swift", mel=words.MEL
)


def encoder(contract=words.MEL):
    return words.Words(contract, code_noise=0.4, warp_range=0.2, equaliser_db=6.0)


def inputs_of(seconds=8.0, seed=0, mels=80):
    """Smooth random spectra with a drifting pitch."""
    generator, n = torch.Generator().manual_seed(seed), int(seconds * 22050 / 256)
    mel = torch.nn.functional.interpolate(torch.randn((1, 12, n // 8 + 2), generator=generator), n, mode="linear")
    mel = torch.nn.functional.interpolate(mel.transpose(1, 2), mels, mode="linear") * 1.5 - 5
    f0 = 150 + 100 * torch.rand((1, n), generator=generator)
    return ConditionInputs(mel, f0, f0 > 0, torch.full((1, n), -30.0))


def test_chunks_equal_the_whole_and_nothing_is_random():
    inputs, content = inputs_of(), encoder()
    whole = content.encode(inputs, 10**6)
    assert torch.equal(whole, content.encode(inputs, 10**6))
    assert torch.allclose(whole, content.encode(inputs, 100), atol=1e-4)
    assert torch.allclose(whole, content(inputs), atol=1e-4)


def test_noise_only_in_training_and_from_the_generator_alone():
    inputs, content = inputs_of(), encoder()
    a, b = (content(inputs, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert (a - content(inputs)).std() == pytest.approx(0.4, rel=0.05)


def test_gain_and_a_constant_filter_do_not_matter():
    inputs, content = inputs_of(), encoder()
    tilted = inputs.log_mel + torch.linspace(0.5, 1.5, 80)  # far above the floor, so only the weights move a little
    other = ConditionInputs(tilted, inputs.f0_hz, inputs.voiced, inputs.loudness_db)
    difference = (content.encode(inputs, 1000) - content.encode(other, 1000)).square().mean()
    assert difference < 0.02


def test_variants_begin_with_the_recording_itself_and_depend_on_the_seed():
    inputs, content = inputs_of(), encoder()
    made = content.variants(inputs, 3, seed=5)
    assert torch.equal(made[:1], content.encode(inputs, len(inputs)))
    assert torch.equal(made, content.variants(inputs, 3, seed=5))
    assert not torch.equal(made[1], content.variants(inputs, 3, seed=6)[1])
    assert not torch.equal(made[1], made[2])


@pytest.mark.parametrize("rate, hop", [(44100, 512), (22050, 512), (16000, 160)])
def test_other_mels_and_frame_rates_are_read_on_their_own_grid(rate, hop):
    contract = MelConfig(sample_rate_hz=rate, hop_samples=hop, n_mels=100, fmax_hz=8000.0)
    inputs = inputs_of(mels=100)
    code = encoder(contract).encode(inputs, 500)
    assert code.shape == (1, len(inputs), 64) and bool(code.isfinite().all())


def test_it_is_fast_and_small():
    inputs, content = inputs_of(60.0), encoder()
    content.encode(inputs_of(1.0), 2048)
    began = time.process_time()
    content.encode(inputs, 2048)
    assert 60.0 / (time.process_time() - began) > 30
    network = words.pretrained()
    assert sum(p.numel() for p in network.parameters()) < 3_000_000
    assert not list(content.parameters())  # nothing to train, nothing in an instrument


def test_settings_build_it_and_the_model_has_no_copy_of_its_weights():
    settings = DiffusionSettings(
        content="words", channels=16, n_layers=1, condition_dims=16, coarse_channels=16, coarse_layers=1
    )
    model = settings.build(FEATURES)
    assert isinstance(model.content, words.Words)
    assert not [name for name in model.state_dict() if name.startswith("content.")]


class _Recordings:
    """As much of a dataset as the cache needs."""

    def __init__(self, inputs):
        self.inputs, self.recordings = inputs, [{"n_frames": len(i)} for i in inputs]

    def features(self, index):
        i = self.inputs[index]
        return extract.Features(
            FEATURES, len(i) * 256, i.f0_hz[0].numpy(), i.voiced[0].numpy(), np.ones(len(i), np.float32),
            i.loudness_db[0].numpy(), i.log_mel[0].numpy(), None,
        )  # fmt: skip


def test_cached_windows_are_cut_from_whole_recordings():
    data = _Recordings([inputs_of(4.0, seed) for seed in range(2)])
    content = encoder()
    cache = ContentCache(data, content, seed=0)
    batch = {"recording": torch.tensor([1, 0]), "start_frame": torch.tensor([50, 300]), "f0_hz": torch.zeros(2, 100)}
    plain = cache.fill(batch)["content"]
    whole = content.encode(data.inputs[1], 10**6)[0]
    assert torch.allclose(plain[0], whole[50:150], atol=2e-3)  # half precision
    rest = len(data.inputs[0]) - 300
    assert bool((plain[1, rest:] == 0).all())
    drawn = [cache.fill(batch, step)["content"] for step in range(8)]
    assert torch.equal(drawn[3], ContentCache(data, content, seed=0).fill(batch, 3)["content"])
    assert len({tuple(d[0].flatten()[:50].tolist()) for d in drawn}) > 1


def _measured(path):
    sound = io.read(path, sample_rate_hz=22050)
    found = extract.extract(np.pad(sound.samples, 2205), FEATURES)
    return ConditionInputs.from_arrays(found.log_mel, found.f0_hz, found.voiced, found.loudness_db)


def _distance(a, b):
    """Mean cost of the best warping path."""
    cost = torch.cdist(a, b).numpy()
    total = np.full((len(a) + 1, len(b) + 1), np.inf)
    total[0, 0] = 0.0
    for i in range(len(a)):
        for j in range(len(b)):
            total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return total[-1, -1] / (len(a) + len(b))


def test_digits_of_an_unknown_speaker_are_recognised_by_another_unknown_speaker(data_dir):
    """One template of each digit by ``theo``, three takes by ``george``; chance is 0.1."""
    files = {
        (speaker, digit, take): data_dir / "digits" / f"{digit}_{speaker}_{take}.wav"
        for speaker, takes in (("theo", (7,)), ("george", (5, 9, 21)))
        for digit in range(10)
        for take in takes
    }
    content, found = encoder(), {}
    for speaker in ("theo", "george"):  # one recording per speaker, as an encoder that normalises needs
        own = [key for key in files if key[0] == speaker]
        own.sort(key=lambda key: zlib.crc32(str(key).encode()))
        parts = [_measured(files[key]) for key in own]
        whole = ConditionInputs(
            *(torch.cat([getattr(p, f) for p in parts], 1) for f in ("log_mel", "f0_hz", "voiced", "loudness_db"))
        )
        envelope = content._envelope(whole, len(whole))
        cepstra = words.normalised(envelope @ content.basis, envelope.mean(-1)).transpose(1, 2)
        code, at = content.encode(whole, len(whole)), 0
        for key, part in zip(own, parts, strict=True):
            found[key] = code[0, at : at + len(part) : 3], cepstra[0, at : at + len(part) : 3]
            at += len(part)
    right = [0, 0]
    tried = [key for key in files if key[0] == "george"]
    for which in (0, 1):
        for key in tried:
            distances = [_distance(found[key][which], found["theo", digit, 7][which]) for digit in range(10)]
            right[which] += int(np.argmin(distances)) == key[1]
    by_code, by_cepstra = (r / len(tried) for r in right)
    assert by_code >= 0.8
    assert by_code > by_cepstra
