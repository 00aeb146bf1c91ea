"""``svclib convert``: songs sung by an instrument. Importing this module registers it in ``commands.HANDLERS``."""

import math
from pathlib import Path

from svclib.cli.commands import HANDLERS, ProgressPrinter, say, warn_renamed
from svclib.utils.errors import ConfigError


def convert(a) -> int:
    """``svclib convert``."""
    from svclib.conversion import batch, pipeline
    from svclib.models import instrument
    from svclib.models.vocoders import auto as vocoding

    songs = [found for given in a.input for found in (pipeline.find_songs(given) if Path(given).is_dir() else [given])]
    out = Path(a.out)
    as_file = out.suffix.lower().lstrip(".") in pipeline.FORMATS and not out.is_dir()
    if as_file and len(songs) > 1:
        raise ConfigError(f"--out is the file '{out}', but there are {len(songs)} songs; give a folder.")
    if out.suffix and not as_file and not out.is_dir():
        raise ConfigError(f"--out is '{out}'; results are written as {', '.join(pipeline.FORMATS)}, or into a folder.")
    mix = singer_mix(a.singer)
    opened, vocoder = instrument.open(a.instrument), None
    if a.vocoder:
        vocoder = vocoding.open(a.vocoder, near=Path(a.instrument).parent)
    folder, form, name = (out.parent, out.suffix[1:], out.stem) if as_file else (out, "wav", None)
    outcomes = []
    with ProgressPrinter(Path(songs[0]).name if len(songs) == 1 else f"{len(songs)} songs") as progress:
        for outcome in batch.convert_songs(
            opened,
            songs,
            folder,
            lambda song: _controls(a, song, opened),
            form=form,
            name=name,
            f0_method=a.f0,
            progress=progress,
            seed=a.seed,
            keep_rate=a.keep_rate,
            sampler=a.sampler,
            steps=a.steps,
            shallow=a.shallow,
            temperature=a.temperature,
            singer=mix,
            precision=a.precision,
            vocoder=vocoder,
        ):
            if outcome.error is not None and len(songs) == 1:
                raise outcome.error
            if progress.bar is not None:
                progress.bar.clear()
            outcomes.append(batch.Outcome(outcome.path, outcome.saved, None, outcome.error))
            if outcome.saved is not None:
                if as_file:
                    warn_renamed(out, outcome.saved)
                for warning in outcome.conversion.warnings:
                    say(f"{outcome.path.stem}: {warning}")
                print(f"{outcome.saved}\n{outcome.conversion.settings_text}")
    if any(o.error is not None for o in outcomes):
        raise ConfigError(batch.describe(outcomes))
    return 0


def singer_mix(given: list[str] | None) -> dict[str, float] | str | None:
    """``NAME`` or ``NAME=WEIGHT``, repeated, as ``conversion.convert`` takes it.

    Args:
        given: Each ``--singer``, as it was written; a name without weight counts 1. None or empty: there was none.

    Returns:
        None for the instrument's own choice, one name, or weights by name.

    Raises:
        ConfigError: if a weight is no number of 0 or more, or a name comes twice.
    """
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return given[0]
    mix = {}
    for text in given:
        name, weight = text.rsplit("=", 1) if "=" in text else (text, "1")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or not 0 <= value < math.inf:
            raise ConfigError(f"--singer is '{text}'; give NAME, or NAME=WEIGHT with a weight of 0 or more.")
        if name in mix:
            raise ConfigError(f"--singer names '{name}' twice; give each singer once.")
        mix[name] = value
    return mix


def _controls(a, song, opened):
    from svclib.conversion import pipeline

    semitones, octave = a.key, a.octave
    if a.key == "auto":
        suggestion = pipeline.suggest_shift(song.features, opened.statistics, opened.kind)
        say(f"{song.name}: {suggestion.text}")
        octave, semitones = a.octave + suggestion.octaves, suggestion.extra_semitones
    attenuation = pipeline.defaults(opened.kind).attenuation_db if a.attenuation is None else a.attenuation
    return pipeline.Controls(
        use_loudness_statistics=not a.no_loudness_statistics,
        mask_threshold=a.mask_threshold,
        attenuation_db=attenuation,
        autotune=a.autotune,
        autotune_key=a.autotune_key,
        octave_shift=octave,
        semitone_shift=semitones,
        loudness_shift_db=a.loudness_shift,
        loudness_follow=a.loudness_follow,
        repair_octaves=a.repair_octaves,
    )


HANDLERS["convert"] = convert
