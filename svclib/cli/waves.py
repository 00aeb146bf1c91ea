"""Commands that make waves without an instrument that sings: ``svclib vocode``, ``generate``, ``denoise``,
``interpolate``.

Importing this module registers them in ``commands.HANDLERS``.
"""

from pathlib import Path

from svclib.cli.commands import HANDLERS, ProgressPrinter, warn_renamed
from svclib.utils.errors import ConfigError


def vocode(a) -> int:
    """``svclib vocode``."""
    from svclib.audio import io as audio
    from svclib.conversion.pipeline import FORMATS
    from svclib.conversion.song import load_song
    from svclib.models.vocoders import auto as vocoding

    out = Path(a.out)
    if out.suffix.lower().lstrip(".") not in FORMATS:
        raise ConfigError(f"--out is '{out}'; results are written as {', '.join(FORMATS)}.")
    with ProgressPrinter(Path(a.input).name) as progress:
        vocoder = vocoding.open(a.vocoder, fast=not a.every_step, progress=progress)
        song = load_song(a.input, vocoder.features, a.f0, lambda f, text="": progress(0.5 * f, text))
        sound = vocoding.vocode(vocoder, song, a.seed, lambda f, text="": progress(0.5 + 0.5 * f, text))
    comment = f"{audio.SYNTHETIC_TAG}; vocoder {vocoder.name}, {vocoder.sha256}, seed {a.seed}"
    written = audio.write(out, sound, vocoder.sample_rate_hz, {"comment": comment}, new_name=True)
    warn_renamed(out, written.path)
    print(
        f"{written.path}\n{song.name} sung again by the {vocoder.kind} vocoder '{vocoder.name}' "
        f"({vocoder.sample_rate_hz} Hz, seed {a.seed})"
    )
    return 0


def generate(a) -> int:
    """``svclib generate``."""
    from svclib.conversion import diffwave_files

    opened = diffwave_files.open_model(a.model)
    with ProgressPrinter("generating") as progress:
        made = diffwave_files.generate(
            opened, a.out, a.count, tuple(a.label or (None,)), a.seed, a.seconds, a.fast, progress=progress
        )
    return _told(made)


def denoise(a) -> int:
    """``svclib denoise``."""
    from svclib.audio import io as audio
    from svclib.conversion import diffwave_files
    from svclib.conversion.pipeline import find_songs

    inputs = [found for given in a.input for found in (find_songs(given) if Path(given).is_dir() else [Path(given)])]
    out = Path(a.out)
    as_file = out.suffix.lower() in audio.WRITABLE and not out.is_dir()
    if as_file and len(inputs) > 1:
        raise ConfigError(f"--out is the file '{out}', but there are {len(inputs)} recordings; give a folder.")
    if out.suffix and not as_file and not out.is_dir():
        raise ConfigError(f"--out is '{out}'; sound is written as {', '.join(audio.WRITABLE)}, or into a folder.")
    opened = diffwave_files.open_model(a.model)
    folder, name = (out.parent, out.name) if as_file else (out, None)
    with ProgressPrinter("denoising") as progress:
        made = diffwave_files.denoise(
            opened, inputs, folder, a.step, a.reading, a.label, a.seed, name, progress=progress
        )
    if as_file:
        warn_renamed(out, made[0])
    return _told(made)


def interpolate(a) -> int:
    """``svclib interpolate``."""
    from svclib.conversion import diffwave_files

    if len(a.input) != 2:
        raise ConfigError(f"--input was given {len(a.input)} times; give it twice: from which recording to which.")
    first, second = a.input
    opened = diffwave_files.open_model(a.model)
    with ProgressPrinter("interpolating") as progress:
        made = diffwave_files.interpolate(
            opened, first, second, a.out, a.count, a.step, not a.independent_noise, a.label, a.seed, progress=progress
        )
    return _told(made)


def _told(made: list[Path]) -> int:
    for path in made:
        print(path)
    return 0


HANDLERS |= {f.__name__: f for f in (vocode, generate, denoise, interpolate)}
