"""The arguments of every command.

Flags of controls are generated from their ``ControlSpec``, for the given command only: ``svclib --help`` loads no model
code.
"""

import argparse
from typing import Any

from svclib import __version__

_EPILOG = "A flag that may be given several times is repeated. --config takes a preset's name or a .gin file."
_F0 = "swift, crepe, crepe_tiny or pyin (default: the instrument's)"


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line instead of printing the whole usage."""

    def error(self, message):
        """Print one sentence and leave with status 2."""
        text = message[:1].upper() + message[1:].rstrip(".")
        self.exit(2, f"{text}. '{self.prog} --help' shows what there is.\n")


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """The command line as it stands in the README; ``chosen`` is the command that gets the flags of its controls."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    top = _Parser("svclib", description="Turn recordings of a voice into an instrument, and convert songs with it.")
    top.epilog = _EPILOG
    top.add_argument("--version", action="version", version=f"svclib {__version__}")
    top.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (help, add) in _COMMANDS.items():
        text = help[:1].upper() + help[1:] + "."
        sub = commands.add_parser(name, help=help, description=text, parents=[common])
        add(sub)
        if name == chosen:
            _add_generated(sub, name)
    return top


# Generated from controls ----------------------------------------------------------------------------------------------


def _add_generated(p, command: str) -> None:
    """The flags of a command's control dataclasses."""
    if command == "convert":
        from svclib.conversion.controls import Controls
        from svclib.models.diffusion.samplers import SamplingOptions

        add_controls(p.add_argument_group("controls"), Controls)
        diffusion = p.add_argument_group("diffusion instruments")
        add_controls(diffusion, SamplingOptions)
        diffusion.add_argument(
            "--singer", metavar="NAME[=WEIGHT]", action="append", help="one of its singers; repeat for a mix"
        )
        diffusion.add_argument(
            "--vocoder", metavar="NAME|ZIP|PATH|URL", help="a vocoder of the same mel, instead of its own"
        )
    elif command in ("generate", "denoise", "interpolate"):
        from svclib.conversion.diffwave_files import OPTIONS

        add_controls(p, OPTIONS[command])


def add_controls(p, settings: type) -> None:
    """Add a flag for every control of a dataclass; what is not given is None."""
    from svclib.utils.serialization import control_specs

    for spec in control_specs(settings):
        notes = [spec.range_text or (", ".join(spec.options) if len(spec.options) < 10 else "")]
        notes += [f"default {spec.default}"] if spec.default is not None and not isinstance(spec.default, bool) else []
        help = f"{spec.help} ({'; '.join(filter(None, notes))})" if any(notes) else spec.help
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if not isinstance(spec.default, bool):
            kind = {"metavar": spec.metavar, "type": str if spec.low is None else _number(spec)}
        p.add_argument(spec.flags[0], dest=spec.name, default=None, help=help, **kind)
        for older in spec.flags[1:]:
            p.add_argument(older, dest=spec.name, default=None, help=argparse.SUPPRESS, **kind)


def given(arguments: argparse.Namespace, settings: type) -> dict[str, Any]:
    """The controls of a dataclass that were given on the command line, by name."""
    from svclib.utils.serialization import control_specs

    values = {spec.name: getattr(arguments, spec.name) for spec in control_specs(settings)}
    return {name: value for name, value in values.items() if value is not None}


def _number(spec):
    whole = isinstance(spec.low, int)

    def parse(text: str) -> float | int | str:
        if text in spec.metavar.split("|")[1:]:
            return text
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = None
        if value is None or not spec.low <= value <= spec.high:
            others = "".join(f" or {word}" for word in spec.metavar.split("|")[1:])
            kind = "whole number" if whole else "number"
            raise argparse.ArgumentTypeError(f"'{text}' is not a {kind} of {spec.range_text}{others}")
        return value

    return parse


# Commands -------------------------------------------------------------------------------------------------------------


def _demo(p) -> None:
    p.add_argument("--out", metavar="DIR", default="svclib_demo", help="folder for everything (default: %(default)s)")
    p.add_argument("--audio", metavar="DIR", help="recordings of one voice, instead of a synthetic singer")
    p.add_argument("--song", metavar="FILE", help="the song to convert; with --audio")
    p.add_argument("--minutes", type=_positive, metavar="M", default=None, help="how long to train (default: 1.5)")
    p.add_argument("--seed", type=int, default=0)


def _doctor(p) -> None:
    p.add_argument("--audio", metavar="DIR", action="append", required=True, help="folder or file; repeat for more")
    _json(p)


def _prepare(p) -> None:
    p.add_argument("--audio", metavar="DIR|ZIP|URL", action="append", required=True, help="repeat for more voices")
    p.add_argument("--singer", metavar="NAME", action="append", help="the singer of each --audio, in the same order")
    p.add_argument("--labels", metavar="PATTERN", help="of file names, such as {label}_{singer}_{take}")
    p.add_argument("--validation", metavar="PATTERN", help="recordings to hold out, by name, such as 'song_0*'")
    p.add_argument("--out", metavar="DATASET", required=True, help="the dataset's folder; a second run adds to it")
    p.add_argument("--executor", metavar="dask://HOST:PORT", help="measure on a dask cluster (default: this machine)")
    _config(p)


def _train(p) -> None:
    p.add_argument("--dataset", metavar="DATASET", required=True)
    p.add_argument("--run", metavar="RUN", required=True, help="folder of checkpoints and logs")
    _config(p)
    p.add_argument("--steps", type=_count, metavar="N", help="train until this step")
    p.add_argument("--minutes", type=_positive, metavar="M", help="stop after this time, or at the last step")
    p.add_argument("--seed", type=int, metavar="S")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    init = "weights to start from: of an instrument, base (default): the shipped model where the preset fits it, none"
    p.add_argument("--init", metavar="NAME.zip|base|none", default="base", help=init)
    p.add_argument("--from", dest="from_step", type=_count, metavar="STEP", help="go back to a kept checkpoint")
    p.add_argument(
        "--songs", metavar="DIR", help="songs to convert at every validation; the best step is chosen by them"
    )
    p.add_argument("--words", action="store_true", help="judge them by their words too (extra 'words')")
    p.add_argument("--take-over", action="store_true", help="although another machine trains it: that one stops")


def _sweep(p) -> None:
    p.add_argument("--dataset", metavar="DATASET", required=True)
    p.add_argument("--runs", metavar="DIR", required=True, help="folder of one run per cell")
    _config(p)
    p.add_argument("--grid", metavar="NAME=V1,V2,...", action="append", required=True, help="repeat for more axes")
    p.add_argument("--steps", type=_count, metavar="N", help="train every cell until this step")
    p.add_argument("--minutes", type=_positive, metavar="M", help="stop after this time, all cells together")
    p.add_argument("--seed", type=int, metavar="S")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _export(p) -> None:
    p.add_argument("--run", metavar="RUN", required=True)
    p.add_argument("--out", metavar="NAME.zip", required=True)
    p.add_argument("--checkpoint", metavar="best|last|STEP", default="best", type=_checkpoint)
    p.add_argument("--licence", metavar="TEXT", help="terms of use; stored in the file")
    p.add_argument("--vocoder", metavar="NAME.zip", help="embed this vocoder (preset harmonic) in place of the run's")
    p.add_argument("--consent", metavar="TEXT", help="the singer and what they agreed to; stored in the file")
    p.add_argument("--dataset", metavar="DATASET", help="of the run: stores what --retrieval of convert draws on")


def _info(p) -> None:
    p.add_argument("path", metavar="NAME.zip | RUN | DATASET")
    _json(p)


def _convert(p) -> None:
    p.add_argument("--instrument", metavar="NAME.zip", required=True)
    p.add_argument("--input", metavar="SONG", action="append", required=True, help="repeat for more songs")
    p.add_argument("--out", metavar="FILE|DIR", required=True, help="wav, flac or mp3; nothing is ever overwritten")
    p.add_argument("--f0", metavar="NAME", help=_F0)
    p.add_argument("--keep-rate", action="store_true", help="write at the song's sample rate")


def _vocode(p) -> None:
    p.add_argument("--vocoder", metavar="NAME.zip", required=True, help="or an NSF-HiFiGAN checkpoint, or a link")
    p.add_argument("--input", metavar="SONG", required=True)
    p.add_argument("--out", metavar="FILE", required=True, help="wav, flac or mp3; nothing is ever overwritten")
    p.add_argument("--seed", type=int, metavar="S", default=0)
    p.add_argument("--f0", metavar="NAME", help=_F0)
    p.add_argument("--every-step", action="store_true", help="diffwave: every trained step, not its fast schedule")


def _diffwave(p, out: str, help: str) -> None:
    p.add_argument("--model", metavar="NAME.zip", required=True, help="a DiffWave trained without a mel")
    p.add_argument("--out", metavar=out, required=True, help=help)


def _generate(p) -> None:
    _diffwave(p, "DIR", "folder of LABEL_NUMBER_seedSEED.wav; what is already there is not made twice")
    p.add_argument("--label", metavar="L", action="append", help="repeat for more")


def _denoise(p) -> None:
    _diffwave(p, "FILE|DIR", "a file, or a folder for several")
    p.add_argument("--input", metavar="FILE|DIR", action="append", required=True, help="repeat for more")


def _interpolate(p) -> None:
    _diffwave(p, "DIR", "folder of 'A to B 1 of N.wav'")
    p.add_argument("--input", metavar="FILE", action="append", required=True, help="twice: the two ends")


def _trace(p) -> None:
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--instrument", metavar="NAME.zip")
    which.add_argument("--example", action="store_true", help="write the lesson that comes with svclib")
    p.add_argument("--input", metavar="SONG", help="the song to convert")
    p.add_argument("--out", metavar="LESSON.html", required=True, help="nothing is ever overwritten")
    p.add_argument("--start", type=float, metavar="S", default=0.0, help="start of the excerpt, seconds")
    p.add_argument("--seconds", type=_positive, metavar="S", default=5.0, help="its length (default: %(default)s)")
    p.add_argument("--steps", type=_count, metavar="N", help="steps of the main run (default: 50)")
    p.add_argument("--seed", type=int, metavar="S", default=0)


def _evaluate(p) -> None:
    p.add_argument("--reference", metavar="FILE|DIR", required=True)
    p.add_argument("--converted", metavar="FILE|DIR", required=True, help="files of a folder are matched by name")
    p.add_argument("--target-voice", metavar="DIR", help="recordings of the target voice: adds speaker similarity")
    words = "add the character error rate by Whisper: a folder, a name such as base, or what is on this machine"
    p.add_argument("--words", metavar="MODEL", nargs="?", const="", help=f"{words} (extra 'words')")
    p.add_argument("--download", action="store_true", help="fetch the recognizer from the Hugging Face hub if missing")
    p.add_argument("--language", metavar="CODE", help="of the words, for example en; detected otherwise")
    _json(p)


_COMMANDS = {
    "demo": ("everything in one go on two synthetic singers, or on your own files", _demo),
    "doctor": ("report on recordings; changes nothing", _doctor),
    "prepare": ("measure recordings once and keep them as a dataset", _prepare),
    "train": ("train a model; continues from the last checkpoint where there is one", _train),
    "sweep": ("train one run per cell of a grid of settings; skips finished cells", _sweep),
    "export": ("make an instrument file of a run", _export),
    "info": ("describe an instrument, a run or a dataset", _info),
    "convert": ("convert songs with an instrument", _convert),
    "vocode": ("analysis and resynthesis of a song by a vocoder, from its mel and F0", _vocode),
    "generate": ("generate sounds with a DiffWave, by label where it was trained with labels", _generate),
    "denoise": ("take noise out of recordings with a DiffWave that was trained on clean ones", _denoise),
    "interpolate": ("sounds between two recordings, by a DiffWave", _interpolate),
    "trace": ("make a lesson of a diffusion or DiffWave instrument: one page, from noise to song", _trace),
    "evaluate": ("compare converted songs with their references: pitch, loudness, spectrum, words", _evaluate),
}


def _json(p) -> None:
    p.add_argument("--json", metavar="FILE", help="write the report as JSON; - for standard output")


def _config(p) -> None:
    p.add_argument("--config", metavar="FILE", action="append", required=True, help="preset or file; later ones win")
    p.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="change a setting; repeat for more")


# Types ----------------------------------------------------------------------------------------------------------------


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


for _type, _name in ((_positive, "number"), (_count, "whole number")):
    _type.__name__ = _name  # argparse names the type in "invalid number value: 'x'"
