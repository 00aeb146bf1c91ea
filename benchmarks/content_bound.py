"""How near could a reader come at best? A bound for ``content.py``: the code's input fitted to each reader beforehand.

    python benchmarks/content_bound.py DATA OUT

OUT is that of ``content.py`` (its two instruments and its readings). What perturbation is to teach a code, to hear past
the reader, is done here with the answers at hand: on half of the sentences a linear map of the normalised cepstra
(20 x 20 and an offset) is fitted so that the coarse mel comes nearest to the voice's own readings along the path of
dynamic time warping; the other half is converted through it, then the halves change places. A design that knows neither
the reader nor the sentences can hardly do better. Printed: distance in dB as ``content.py`` measures it, plain and
fitted, for both models.
"""

import argparse
import contextlib
import math
from pathlib import Path

import librosa
import numpy as np
import torch

import content as experiment
from svclib.audio import io as audio
from svclib.conversion import metrics, pipeline
from svclib.features.f0 import fill_unvoiced
from svclib.models import instrument
from svclib.models.content import bottleneck

WALKS = {"walk": {}, "no walk": {"shallow": 1}}
ROUNDS, STEPS, RATE, PULL = 3, 20, 5e-3, 0.02


def mapped(model, song, adjusted, matrix, offset):
    """The coarse log-mel ``[frames, mels]`` of a song whose cepstra go through the map."""
    own, on = model.content, torch.from_numpy(adjusted.voiced)[None]
    source_f0 = fill_unvoiced(song.features.f0_hz, song.features.voiced)
    log_mel = torch.from_numpy(song.features.log_mel)[None]
    cepstra, height = own.measured(log_mel, torch.as_tensor(source_f0)[None].float())
    seen = own.normalised(cepstra, height) @ matrix + offset
    code = torch.tanh(own.convs(seen.transpose(1, 2)).transpose(1, 2))
    f0_hz = torch.as_tensor(fill_unvoiced(adjusted.f0_hz, adjusted.voiced))[None].float()
    loudness = torch.from_numpy(adjusted.loudness_db)[None].float()
    condition = model.conditions(code, f0_hz, on, model._known(loudness), model.singer_weights())
    mel = model.unscale(model.coarse(condition).clamp(-1, 1)) + model.beyond(loudness)[..., None]
    return mel[0].clamp_min(math.log(model.contract.floor))


def loud(log_mel) -> np.ndarray:
    """Frames within 40 dB of the loudest: silence at both ends does not count."""
    level = log_mel.max(-1)
    on = np.flatnonzero(level > level.max() - 40 / 20 * math.log(10))
    return np.arange(on[0], on[-1] + 1)


def fitted(model, pairs):
    """The map that brings songs nearest to the readings beside them."""
    basis = bottleneck.cepstrum_basis(model.contract.n_mels, 24) / math.sqrt(model.contract.n_mels)
    matrix, offset = torch.eye(20, requires_grad=True), torch.zeros(20, requires_grad=True)
    optimizer = torch.optim.Adam([matrix, offset], lr=RATE)
    read = [reading.features.log_mel for *_, reading in pairs]
    references = [torch.from_numpy(log_mel[loud(log_mel)]) @ basis for log_mel in read]
    for _ in range(ROUNDS):
        paths = []
        for (song, adjusted, _), reference in zip(pairs, references, strict=True):
            frames = loud(song.features.log_mel)
            with torch.no_grad():
                made = mapped(model, song, adjusted, matrix, offset)[frames] @ basis
            path = librosa.sequence.dtw(reference.numpy().T.astype(float), made.numpy().T.astype(float))[1]
            paths.append((path[:, 0].copy(), frames[path[:, 1]]))
        for _ in range(STEPS):
            loss = PULL * (matrix - torch.eye(20)).square().sum()
            for (song, adjusted, _), reference, (there, here) in zip(pairs, references, paths, strict=True):
                made = mapped(model, song, adjusted, matrix, offset)[here] @ basis
                loss = loss + ((reference[there] - made).square().sum(-1) + 1e-6).sqrt().mean() / len(pairs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return matrix.detach(), offset.detach()


@contextlib.contextmanager
def used(matrix, offset):
    """While this lasts, every code is made through the map."""
    plain = bottleneck.Bottleneck.normalised
    bottleneck.Bottleneck.normalised = lambda self, *seen: plain(self, *seen) @ matrix + offset
    try:
        yield
    finally:
        bottleneck.Bottleneck.normalised = plain


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    paths = sorted((arguments.data / "voices" / "kathleen_spoken").glob("*.flac"))
    rate_hz = experiment.RATE_HZ
    own = [experiment.log_mel(audio.read(p, sample_rate_hz=rate_hz).samples, rate_hz) for p in paths]
    for name in ("without", "with"):
        opened = instrument.open(arguments.out / f"{name}.zip")
        for p in opened.model.parameters():
            p.requires_grad_(False)

        def distances(songs, walk, opened=opened):
            made = [(pipeline.convert(opened, songs[k], None, 0, **walk), own[k]) for k in songs]
            heard = [(reference, experiment.log_mel(m.audio, m.sample_rate_hz)) for m, reference in made]
            return [metrics.mel_cepstral_distance_db(*pair, 24, warped=True) for pair in heard]

        for reader in experiment.READERS:
            kept = [arguments.out / "readings" / f"{reader}_{p.stem}.wav" for p in paths]
            songs = dict(enumerate(pipeline.load_song(p, opened.features) for p in kept))
            told = {k: pipeline.convert(opened, song, None, 0, shallow=1).tracks for k, song in songs.items()}
            readings = [pipeline.load_song(p, opened.features) for p in paths]
            row = {f"{walk}, plain": distances(songs, asked) for walk, asked in WALKS.items()}
            for half in (0, 1):
                there, here = list(songs)[half::2], list(songs)[1 - half :: 2]
                fit = fitted(opened.model, [(songs[k], told[k], readings[k]) for k in there])
                with used(*fit):
                    for walk, asked in WALKS.items():
                        row.setdefault(f"{walk}, fitted", []).extend(distances({k: songs[k] for k in here}, asked))
            print(name, reader, {what: round(float(np.mean(values)), 2) for what, values in row.items()}, flush=True)


if __name__ == "__main__":
    main()
