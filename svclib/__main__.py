"""The ``svclib`` command: the same calls as the notebooks. ``svclib COMMAND --help`` explains each.

Exit status: 0 on success; 2 on a mistake in what was asked, with one or two sentences on stderr that name the file and
the remedy; 130 after Ctrl-C; 1 for a fault of the program. ``--debug`` shows the traceback of any of them.
"""

import argparse
import os
import sys
import traceback

from svclib import __version__

_EPILOG = "A flag that may be given several times is repeated. --config takes a preset's name or a .gin file."


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the whole usage."""

    def error(self, message):
        """Print one sentence and leave with status 2."""
        text = message[:1].upper() + message[1:].rstrip(".")
        self.exit(2, f"{text}. '{self.prog} --help' shows what there is.\n")


def parser() -> argparse.ArgumentParser:
    """The command line as it stands in the README."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    top = _Parser("svclib", description="Turn recordings of a voice into an instrument, and sing through it.")
    top.epilog = _EPILOG
    top.add_argument("--version", action="version", version=f"svclib {__version__}")
    top.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name, help):
        return commands.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".", parents=[common])

    p = command("demo", "the whole journey on two synthetic singers, or on your own files")
    p.add_argument("--out", metavar="DIR", default="svclib_demo", help="folder for everything (default: %(default)s)")
    p.add_argument("--audio", metavar="DIR", help="recordings of one voice, instead of a synthetic singer")
    p.add_argument("--song", metavar="FILE", help="the song to convert; with --audio")
    p.add_argument("--minutes", type=_positive, metavar="M", default=None, help="how long to train (default: 1.5)")
    p.add_argument("--seed", type=int, default=0)

    p = command("doctor", "report on recordings; changes nothing")
    p.add_argument("--audio", metavar="DIR", action="append", required=True, help="folder or file; repeat for more")
    _json(p)

    p = command("prepare", "measure recordings once and keep them as a dataset")
    p.add_argument("--audio", metavar="DIR|ZIP|URL", action="append", required=True, help="repeat for more voices")
    p.add_argument("--singer", metavar="NAME", action="append", help="who sings in each --audio, in the same order")
    p.add_argument("--labels", metavar="PATTERN", help="of file names, such as {label}_{singer}_{take}")
    p.add_argument("--validation", metavar="PATTERN", help="recordings that are held out, by name, such as 'song_0*'")
    p.add_argument("--out", metavar="DATASET", required=True, help="the dataset's folder; a second run adds to it")
    p.add_argument("--executor", metavar="dask://HOST:PORT", help="measure on a dask cluster (default: this machine)")
    _config(p)

    p = command("train", "train a model; goes on from the last checkpoint where there is one")
    _dataset(p)
    p.add_argument("--run", metavar="RUN", required=True, help="folder of checkpoints and logs")
    _config(p)
    p.add_argument("--steps", type=_count, metavar="N", help="train until this step")
    p.add_argument("--minutes", type=_positive, metavar="M", help="stop after this time; whatever comes first")
    p.add_argument("--seed", type=int, metavar="S")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument(
        "--init", metavar="NAME.zip", default="base",
        help="start from an instrument's weights; base: the shipped model of several singers where the preset is its "
        "(default); none: fresh weights",
    )  # fmt: skip
    p.add_argument("--from", dest="from_step", type=_count, metavar="STEP", help="go back to a kept checkpoint")
    p.add_argument("--take-over", action="store_true", help="although another machine trains it: that one stops")
    p.add_argument(
        "--songs", metavar="DIR", help="songs of others, converted at every validation to find the best step"
    )
    p.add_argument("--words", action="store_true", help="judge these by their words too (extra 'words')")

    p = command("sweep", "train one run per cell of a grid of settings; skips finished cells")
    _dataset(p)
    p.add_argument("--runs", metavar="DIR", required=True, help="one run per cell goes here")
    _config(p)
    p.add_argument("--grid", metavar="NAME=V1,V2,...", action="append", required=True, help="repeat for more axes")
    p.add_argument("--steps", type=_count, metavar="N", help="train every cell until this step")
    p.add_argument("--minutes", type=_positive, metavar="M", help="stop after this time, all cells together")
    p.add_argument("--seed", type=int, metavar="S")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    p = command("export", "make an instrument file of a run")
    p.add_argument("--run", metavar="RUN", required=True)
    p.add_argument("--out", metavar="NAME.zip", required=True)
    p.add_argument("--checkpoint", metavar="best|last|STEP", default="best", type=_checkpoint)
    p.add_argument("--licence", metavar="TEXT", help="what others may do with it; travels in the file")
    p.add_argument("--vocoder", metavar="NAME.zip", help="embed this vocoder (preset harmonic) in place of the run's")
    p.add_argument("--consent", metavar="TEXT", help="whose voice it is and what they agreed to; travels in the file")

    p = command("info", "say what an instrument, a run or a dataset is")
    p.add_argument("path", metavar="NAME.zip | RUN | DATASET")
    _json(p)

    p = command("convert", "let an instrument sing a song")
    p.add_argument("--instrument", metavar="NAME.zip", required=True)
    p.add_argument("--input", metavar="SONG", action="append", required=True, help="repeat for more songs")
    p.add_argument("--out", metavar="FILE|DIR", required=True, help="wav, flac or mp3; nothing is ever overwritten")
    p.add_argument("--key", metavar="N|auto", type=_key, default=0, help="semitones; auto: the shift that fits")
    p.add_argument("--seed", type=int, metavar="S", default=0)
    p.add_argument("--f0", metavar="NAME", help="swift, crepe, crepe_tiny or pyin (default: the usual)")
    p.add_argument("--keep-rate", action="store_true", help="write at the song's sample rate")
    g = p.add_argument_group("diffusion instruments")
    g.add_argument("--sampler", metavar="NAME", help="ddpm, ddim, plms or dpmpp; the instrument's own if not given")
    g.add_argument("--steps", type=int, metavar="N", help="steps of the sampler")
    g.add_argument("--shallow", type=int, metavar="N", help="start from the coarse mel at this diffusion step")
    g.add_argument("--temperature", type=float, metavar="X", help="of the noise, 0 to 2: less is smoother")
    g.add_argument("--singer", metavar="NAME[=WEIGHT]", action="append", help="one of its singers; repeat for a mix")
    g.add_argument("--precision", metavar="NAME", help="auto, fp32, bf16 or fp16")
    g.add_argument("--vocoder", metavar="NAME|ZIP|PATH|URL", help="a vocoder of the same mel, instead of its own")
    g = p.add_argument_group("controls of the transfer")
    g.add_argument("--octave", type=int, metavar="N", default=0, help="octaves up or down, -3 to 3")
    g.add_argument("--loudness-shift", type=float, metavar="DB", default=0.0, help="-30 to 30")
    g.add_argument("--no-loudness-statistics", action="store_true", help="keep the song's own loudness")
    g.add_argument("--mask-threshold", type=float, metavar="X", default=1.0, help="what counts as a note, 0 to 2")
    g.add_argument("--loudness-follow", type=float, metavar="X", default=1.0, help="1: the song's dynamics, 0: level")
    g.add_argument("--attenuation", type=float, metavar="DB", help="between notes, 0 to 50 (default: 20; diffusion: 0)")
    g.add_argument("--repair-octaves", action="store_true", help="mend the places where the tracker jumped an octave")
    g.add_argument("--autotune", type=float, metavar="X", default=0.0, help="0 to 1")
    g.add_argument("--autotune-key", metavar="KEY", default="chromatic", help='chromatic, auto, "C major", ...')

    p = command("vocode", "analysis and resynthesis: a song made again by a vocoder from its mel and pitch")
    p.add_argument("--vocoder", metavar="NAME.zip", required=True, help="or an NSF-HiFiGAN checkpoint, or a link")
    p.add_argument("--input", metavar="SONG", required=True)
    p.add_argument("--out", metavar="FILE", required=True, help="wav, flac or mp3; nothing is ever overwritten")
    p.add_argument("--seed", type=int, metavar="S", default=0)
    p.add_argument("--f0", metavar="NAME", help="swift, crepe, crepe_tiny or pyin (default: the usual)")
    p.add_argument("--every-step", action="store_true", help="diffwave: every trained step, not its fast schedule")

    p = command("generate", "sounds out of noise by a DiffWave, of a label where it was trained with labels")
    _wave(p, "DIR", "folder of LABEL_NUMBER_seedSEED.wav; what already lies there is not made twice")
    p.add_argument("--count", type=_count, metavar="N", default=1, help="sounds per label")
    p.add_argument("--label", metavar="L", action="append", help="repeat for more")
    p.add_argument("--seconds", type=_positive, metavar="S", help="length of each (default: the model's own)")
    p.add_argument("--fast", action="store_true", help="by the model's few-step schedule, instead of every step")

    p = command("denoise", "take noise out of recordings with a DiffWave that never saw noisy ones")
    _wave(p, "FILE|DIR", "a file, or a folder for several")
    p.add_argument("--input", metavar="FILE|DIR", action="append", required=True, help="repeat for more")
    p.add_argument("--step", type=_count, metavar="T", default=25, help="where the walk starts (default: %(default)s)")
    p.add_argument(
        "--reading",
        choices=("as_is", "scaled"),
        default="as_is",
        help="start from the recording as it is, or scaled and with that step's noise added",
    )
    p.add_argument("--label", metavar="L", help="what is said, for a model with labels")

    p = command("interpolate", "sounds between two recordings, by a DiffWave")
    _wave(p, "DIR", "folder of 'A to B 1 of N.wav'")
    p.add_argument("--input", metavar="FILE", action="append", required=True, help="twice: from where to where")
    p.add_argument("--step", type=_count, metavar="T", default=50, help="where they are mixed (default: %(default)s)")
    p.add_argument("--count", type=_count, metavar="N", default=5, help="sounds, both ends among them")
    p.add_argument("--independent-noise", action="store_true", help="a noise of its own for each end, as in the paper")
    p.add_argument("--label", metavar="L", help="what is said, for a model with labels")

    p = command("trace", "make a lesson of a diffusion or DiffWave instrument: one page, from noise to singing")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--instrument", metavar="NAME.zip")
    which.add_argument("--example", action="store_true", help="write the lesson that comes with svclib, as it is")
    p.add_argument("--input", metavar="SONG", help="what the instrument sings")
    p.add_argument("--out", metavar="LESSON.html", required=True, help="nothing is ever overwritten")
    p.add_argument("--start", type=float, metavar="S", default=0.0, help="where in the song, seconds")
    p.add_argument("--seconds", type=_positive, metavar="S", default=5.0, help="how much of it (default: %(default)s)")
    p.add_argument("--steps", type=_count, metavar="N", help="steps of the main run (default: 50)")
    p.add_argument("--seed", type=int, metavar="S", default=0)

    p = command("evaluate", "compare converted songs with their references: pitch, loudness, spectrum")
    p.add_argument("--reference", metavar="FILE|DIR", required=True)
    p.add_argument("--converted", metavar="FILE|DIR", required=True, help="files of a folder are matched by name")
    p.add_argument("--target-voice", metavar="DIR", help="recordings of the wanted voice: adds the similarity")
    p.add_argument(
        "--words",
        metavar="MODEL",
        nargs="?",
        const="",
        help="add the character error rate by Whisper: a folder, a name "
        "such as base, or what is on this machine (extra 'words')",
    )
    p.add_argument("--download", action="store_true", help="fetch the recognizer from the Hugging Face hub if missing")
    p.add_argument("--language", metavar="CODE", help="of the words, for example en; detected otherwise")
    _json(p)
    return top


def _wave(p, out: str, help: str) -> None:
    p.add_argument("--model", metavar="NAME.zip", required=True, help="a DiffWave trained without a mel")
    p.add_argument("--out", metavar=out, required=True, help=help)
    p.add_argument("--seed", type=_count, metavar="S", default=0)


def _json(p) -> None:
    p.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output")


def _dataset(p) -> None:
    p.add_argument("--dataset", metavar="DATASET", required=True)


def _config(p) -> None:
    p.add_argument("--config", metavar="FILE", action="append", required=True, help="preset or file; later ones win")
    p.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="change a setting; repeat for more")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' has to be more than 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{text}' has to be 0 or more")
    return value


def _checkpoint(text: str):
    if text in ("best", "last"):
        return text
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not best, last or a step")


def _key(text: str):
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of semitones or auto") from None


for _type, _name in ((_positive, "number"), (_count, "whole number")):
    _type.__name__ = _name  # argparse names the type in "invalid number value: 'x'"


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit status, see the module's first lines.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a file name that the terminal cannot show is no reason to stop
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as leave:
        return int(leave.code or 0)
    # threads that wait by sleeping: by spinning, training beside other busy programs was ten times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from svclib.cli import commands, convert, lesson, waves  # noqa: F401  (each registers its commands)

    try:
        return commands.HANDLERS[arguments.command](arguments) or 0
    except KeyboardInterrupt:
        _traceback(arguments)
        print("\nInterrupted. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        _traceback(arguments)
        sentence = commands.mistake(error)
        if sentence:
            print(sentence, file=sys.stderr)
            return 2
        first = (str(error).strip().splitlines() or [""])[0]
        print(
            f"svclib failed ({type(error).__name__}: {first}). This is a fault of the program, not yours; "
            "please report it with what the same command prints with --debug.",
            file=sys.stderr,
        )
        return 1


def _traceback(arguments) -> None:
    if arguments.debug:
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
