"""Truths held here: names, shapes and number of the published generators' tensors; source and residual block against
numpy, sample by sample; weight normalisation against torch's; pieces equal the whole; nothing but tensors is read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from svclib.audio.mel import MelConfig
from svclib.models.vocoders import harmonic, nsf_hifigan
from svclib.models.vocoders.nsf_hifigan import NsfHifigan, NsfSettings, ResBlock
from svclib.utils.errors import Cancelled, ModelError

TABLE = Path(__file__).parents[1] / "fixtures" / "nsf_hifigan_tensors.txt"
CONFIG = {
    "resblock": "1",
    "sampling_rate": 44100,
    "hop_size": 512,
    "num_mels": 8,
    "n_fft": 2048,
    "win_size": 2048,
    "fmin": 40,
    "fmax": 16000,
    "upsample_rates": [8, 8, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 4, 4, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "discriminator_periods": [3, 5, 7, 11, 17, 23, 37],
    "mini_nsf": False,
    "noise_sigma": 0.0,
    "pc_aug": False,
}
KINDS = pytest.mark.parametrize("mini_nsf", [False, True])


def small(mini_nsf, **changes):
    torch.manual_seed(0)
    settings = NsfSettings.from_json({**CONFIG, "mini_nsf": mini_nsf, **changes})
    return NsfHifigan(settings).eval().requires_grad_(False)


def song(n_frames, seed=0):
    rng = np.random.default_rng(seed)
    f0 = (220 * 2 ** np.cumsum(0.05 * rng.standard_normal(n_frames))).astype(np.float32)
    voiced = np.ones(n_frames, dtype=bool)
    voiced[n_frames // 3 : n_frames // 2] = False
    log_mel = rng.normal(-4, 2, (n_frames, 8)).astype(np.float32)
    return [torch.from_numpy(x)[None] for x in (log_mel, f0, voiced)]


def rendered(model, arguments, **options):
    return torch.from_numpy(model.render(*(x[0].numpy() for x in arguments), **options).audio)[None]


def table(release):
    """Names and shapes of the published checkpoint, with weight normalisation."""
    sections, current = {}, None
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif not line.startswith("#"):
            name, shape = line.split()
            current[name] = torch.Size(int(n) for n in shape.split("x"))
    return {**sections["both"], **sections[release]}


@pytest.mark.parametrize(
    "release, mini_nsf, millions, normed",
    [("2022.12 and 2024.02", False, 14.17, 14.18), ("pc-2025.02", True, 14.13, 14.14)],
)
def test_tensors_are_the_published_ones(release, mini_nsf, millions, normed):
    published = table(release)
    with torch.device("meta"):
        own = {k: v.shape for k, v in NsfHifigan(NsfSettings(mini_nsf=mini_nsf)).state_dict().items()}
    plain = {k.replace("weight_v", "weight"): v for k, v in published.items() if not k.endswith("weight_g")}
    assert own == plain
    assert round(sum(s.numel() for s in own.values()) / 1e6, 2) == millions
    assert round(sum(s.numel() for s in published.values()) / 1e6, 2) == normed
    assert NsfSettings().contract == MelConfig()


# Against numpy --------------------------------------------------------------------------------------------------------


def test_source_of_nine_harmonics_sample_by_sample():
    """``tanh(w . 0.1 sin(2 pi k phase) + b)``, the phase a running sum over samples; no sines where unvoiced."""
    model = small(False)
    f0 = np.array([200.0, 210.0, 0.0, 0.0, 300.0])
    pitch = torch.tensor(f0, dtype=torch.float32)[None]
    got = model.source(pitch, pitch, model.frame_phase(pitch))[0, 0].numpy()
    per_sample = np.repeat(f0, 512)
    phase = np.cumsum(per_sample / 44100)
    sines = 0.1 * np.sin(2 * np.pi * phase[:, None] * np.arange(1, 10)) * (per_sample > 0)[:, None]
    linear = model.m_source["l_linear"]
    want = np.tanh(sines @ linear.weight.double().numpy()[0] + float(linear.bias))
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_source_noise_is_as_published():
    """Standard deviations 0.003 where voiced and 0.1 / 3 where not, seen through equal small weights."""
    model = small(False)
    model.m_source["l_linear"].weight.fill_(1e-3)
    model.m_source["l_linear"].bias.zero_()
    pitch = torch.tensor([[220.0] * 20 + [0.0] * 20])
    silent = model.source(pitch, pitch, model.frame_phase(pitch))[0, 0]
    noisy = model.source(pitch, pitch, model.frame_phase(pitch), None, torch.Generator().manual_seed(0))[0, 0]
    noise = (noisy - silent).double() / 1e-3 / 3  # nine independent ones add to three times one
    assert float(noise[: 20 * 512].std()) == pytest.approx(0.003, rel=0.03)
    assert float(noise[20 * 512 :].std()) == pytest.approx(0.1 / 3, rel=0.03)


def test_mini_source_is_one_sine_on_straight_lines():
    model = small(True)
    f0 = np.array([200.0, 260.0, 250.0, 400.0])
    pitch = torch.tensor(f0, dtype=torch.float32)[None]
    following = torch.tensor([260.0, 250.0, 400.0, 400.0])[None]
    got = model.source(pitch, following, model.frame_phase(pitch))[0, 0].numpy()
    frequency = np.concatenate([a + (b - a) * np.arange(64) / 64 for a, b in zip(f0, [*f0[1:], f0[-1]], strict=True)])
    want = np.sin(2 * np.pi * np.cumsum(frequency / (44100 / 8)))
    np.testing.assert_allclose(got, want, atol=2e-6)


def convolve(x, weight, bias, dilation):
    """[channels, n] by loops over taps, zeros beyond the ends."""
    taps = weight.shape[2]
    reach = dilation * (taps - 1) // 2
    padded = np.pad(x, ((0, 0), (reach, reach)))
    n = x.shape[1]
    return bias[:, None] + sum(weight[:, :, k] @ padded[:, k * dilation : k * dilation + n] for k in range(taps))


def test_residual_block_by_hand():
    torch.manual_seed(1)
    block = ResBlock(4, 7, (1, 3, 5)).double()
    x = np.random.default_rng(0).standard_normal((4, 90))
    want, leak = x, lambda v: np.where(v > 0, v, 0.1 * v)
    tensors = {k: v.detach().numpy() for k, v in block.state_dict().items()}
    for i, dilation in enumerate((1, 3, 5)):
        y = convolve(leak(want), tensors[f"convs1.{i}.weight"], tensors[f"convs1.{i}.bias"], dilation)
        want = want + convolve(leak(y), tensors[f"convs2.{i}.weight"], tensors[f"convs2.{i}.bias"], 1)
    np.testing.assert_allclose(block(torch.from_numpy(x)[None])[0].detach().numpy(), want, atol=1e-12)


@pytest.mark.parametrize("make", [lambda: torch.nn.Conv1d(5, 4, 3), lambda: torch.nn.ConvTranspose1d(5, 4, 8, 4)])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weight_normalisation_is_torchs_in_both_spellings(make):
    torch.manual_seed(2)
    for norm in (torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm):
        layer = norm(make())
        for name, parameter in layer.named_parameters():
            if name.endswith(("weight_g", "original0")):
                parameter.data.mul_(torch.rand_like(parameter) + 0.5)
        x = torch.randn(1, 5, 20)
        plain = make()
        plain.load_state_dict(nsf_hifigan.plain_weights(layer.state_dict()))
        torch.testing.assert_close(plain(x), layer(x), atol=1e-6, rtol=1e-5)


# As a vocoder ---------------------------------------------------------------------------------------------------------


@KINDS
def test_pieces_equal_the_whole(mini_nsf):
    model, arguments = small(mini_nsf), song(75)
    whole = rendered(model, arguments, seed=3, chunk_frames=1000)
    assert whole.shape == (1, 75 * 512) and float(whole.std()) > 1e-4
    for chunk_frames in (10, 33):
        made = rendered(model, arguments, seed=3, chunk_frames=chunk_frames)
        torch.testing.assert_close(made, whole, atol=2e-6, rtol=0)
    if not mini_nsf:
        assert not torch.equal(rendered(model, arguments, seed=4), whole)
    with pytest.raises(Cancelled):
        rendered(model, arguments, cancelled=lambda: True)


def test_unvoiced_frames_have_no_pitch_in_their_source():
    """Whatever pitch stands in unvoiced frames changes nothing; in ``mini_nsf`` the pitch around them is drawn on."""
    log_mel, f0, voiced = song(60)
    other = torch.where(voiced, f0, torch.full_like(f0, 523.0))
    for mini_nsf in (False, True):
        model = small(mini_nsf)
        made = [rendered(model, (log_mel, pitch, voiced)) for pitch in (other, f0)]
        torch.testing.assert_close(*made, atol=0, rtol=0)


def test_noise_behind_the_first_layer_only_where_the_config_says_so():
    arguments = song(20)
    assert torch.equal(*(rendered(small(True), arguments, seed=seed) for seed in (1, 2)))
    noisy = small(True, noise_sigma=0.5)
    assert not torch.equal(*(rendered(noisy, arguments, seed=seed) for seed in (1, 2)))


def test_log10_mels_are_refused_by_contract():
    model = small(True)
    assert isinstance(model, harmonic.Vocoder)
    assert rendered(model, song(20)).shape == (1, 20 * 512)
    old = dataclasses.replace(model.contract, log_base="10")
    with pytest.raises(ModelError, match="'nsf_hifigan' and of an old dataset differ: log_base e against 10"):
        model.contract.require(old, f"the vocoder '{model.name}'", "an old dataset")


# Files ----------------------------------------------------------------------------------------------------------------


def put(folder, tensors, config=CONFIG, name="model.ckpt"):
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / name


@KINDS
def test_checkpoints_open_with_and_without_weight_normalisation(mini_nsf, tmp_path):
    model, arguments = small(mini_nsf), song(12)
    plain, normed = model.state_dict(), {}
    for name, value in plain.items():
        if name.endswith("weight") and not name.startswith(("m_source", "noise_convs", "source_conv")):
            normed[name + "_g"], normed[name + "_v"] = value.flatten(1).norm(dim=1).view(-1, 1, 1), 3.0 * value
        else:
            normed[name] = value
    config = {**CONFIG, "mini_nsf": mini_nsf}
    for kind, tensors in (("plain", plain), ("normed", normed)):
        path = put(tmp_path / kind, {"generator": dict(tensors)}, config)
        opened = nsf_hifigan.load(path)
        assert opened.name == "model" and not opened.training
        torch.testing.assert_close(rendered(opened, arguments), rendered(model, arguments), atol=1e-6, rtol=1e-4)


class Payload:
    """A pickle that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.case("C7")
def test_files_that_are_no_such_vocoder_are_refused_in_a_sentence(tmp_path):
    tensors = dict(small(False).state_dict())

    def refused(words, contents, config=CONFIG):
        with pytest.raises(ModelError, match=words):
            nsf_hifigan.load(put(tmp_path / "x", contents, config))

    refused("more than tensors", {"generator": Payload(tmp_path / "ran")})
    assert not (tmp_path / "ran").exists()
    refused("no 'generator'", {"state_dict": tensors})
    refused("'model.ckpt': the weights 'extra'", {"generator": {**tensors, "extra": torch.zeros(1)}})
    refused("'conv_post.bias' are missing", {"generator": {k: v for k, v in tensors.items() if k != "conv_post.bias"}})
    refused("shape .* expected", {"generator": {**tensors, "conv_post.bias": torch.zeros(2)}})
    refused("not all finite", {"generator": {**tensors, "conv_post.bias": torch.tensor([torch.nan])}})
    refused("no 'weight_g'", {"generator": {**tensors, "conv_post.weight_v": tensors["conv_post.weight"]}})
    good = {"generator": tensors}
    refused("'hop_size' is missing", good, {k: v for k, v in CONFIG.items() if k != "hop_size"})
    refused("do not multiply", good, {**CONFIG, "hop_size": 256})
    refused("type '2'", good, {**CONFIG, "resblock": "2"})
    refused("upsample_rates is '8'; expected a list", good, {**CONFIG, "upsample_rates": "8"})
    refused("mini_nsf is 1; expected True", good, {**CONFIG, "mini_nsf": 1})
    refused("halve 5 times", good, {**CONFIG, "upsample_initial_channel": 48})
    refused("no JSON object", good, [])
    path = put(tmp_path / "y", good)
    (tmp_path / "y" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="config.json is damaged"):
        nsf_hifigan.load(path)
    (tmp_path / "y" / "config.json").unlink()
    with pytest.raises(ModelError, match="config.json beside it"):
        nsf_hifigan.load(path)
