"""Commands that make waves without an instrument that sings: ``svclib vocode``.

Importing this module registers them in ``commands.HANDLERS``.
"""

from pathlib import Path

from svclib.commands import HANDLERS, Progress, UsageError, warn_renamed


def vocode(a) -> int:
    """``svclib vocode``."""
    from svclib import audio, vocoding
    from svclib.conversion import FORMATS
    from svclib.songs import load_song

    out = Path(a.out)
    if out.suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(f"--out is '{out}'; results are written as {', '.join(FORMATS)}.")
    with Progress(Path(a.input).name) as progress:
        vocoder = vocoding.open(a.vocoder, fast=not a.every_step, progress=progress)
        song = load_song(a.input, vocoder.features, a.f0, lambda f, text="": progress(0.5 * f, text))
        sound = vocoding.vocode(vocoder, song, a.seed, lambda f, text="": progress(0.5 + 0.5 * f, text))
    comment = f"{audio.SYNTHETIC_TAG}; vocoder {vocoder.name}, {vocoder.sha256}, seed {a.seed}"
    written = audio.write(out, sound, vocoder.sample_rate_hz, {"comment": comment}, new_name=True)
    warn_renamed(out, written.path)
    print(f"{written.path}\n{song.name} sung again by the {vocoder.kind} vocoder '{vocoder.name}' "
          f"({vocoder.sample_rate_hz} Hz, seed {a.seed})")  # fmt: skip
    return 0


HANDLERS |= {f.__name__: f for f in (vocode,)}
