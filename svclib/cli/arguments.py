"""The parser of the command line, made from the options that ``commands.py`` declares and from ``ControlSpec``."""

import argparse
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from svclib import __version__


class Command(NamedTuple):
    """A command: its function, whose docstring is the help, its options, and by title its controls (module:class)."""

    run: Callable[[argparse.Namespace], int | None]
    help: str
    options: tuple[tuple[str, dict], ...]
    controls: dict[str, str]


COMMANDS: dict[str, Command] = {}


def command(*options: tuple[str, dict], controls: dict[str, str] | None = None) -> Callable:
    """Decorator: register a function as the command of its name."""

    def add(run: Callable[[argparse.Namespace], int | None]) -> Callable:
        COMMANDS[run.__name__] = Command(run, run.__doc__, options, controls or {})
        return run

    return add


def option(flag: str, help: str | None = None, **settings: Any) -> tuple[str, dict]:
    """An option such as ``--out DIR`` for :func:`command`; ``settings`` are those of ``add_argument``."""
    name, _, metavar = flag.partition(" ")
    return name, {"help": help, **({"metavar": metavar} if metavar else {}), **settings}


def number(low: float | int, high: float | int = math.inf, words: tuple[str, ...] = ()) -> Callable[[str], Any]:
    """Parse a number of a range (a whole one where ``low`` is an int), or one of ``words``."""

    def parse(text: str) -> float | int | str:
        if text in words:
            return text
        try:
            value = type(low)(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or value == math.inf:
            kind = "whole number" if isinstance(low, int) else "number"
            limits = [f"{low:g} or more" if high >= 100_000 else f"{low:g} to {high:g}", *words]
            raise argparse.ArgumentTypeError(f"'{text}' is not a {kind} of {' or '.join(limits)}")
        return value

    return parse


def given(arguments: argparse.Namespace, settings: type) -> dict[str, Any]:
    """The controls of a dataclass that were given on the command line, by name."""
    from svclib.utils.serialization import control_specs

    values = {spec.name: getattr(arguments, spec.name) for spec in control_specs(settings)}
    return {name: value for name, value in values.items() if value is not None}


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """The whole parser; only the ``chosen`` command gets the flags of its controls, for they load model code."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    top = _Parser("svclib", description="Turn recordings of a voice into an instrument, and convert songs with it.")
    top.epilog = "A flag that may be given several times is repeated. --config takes a preset's name or a .gin file."
    top.add_argument("--version", action="version", version=f"svclib {__version__}")
    top.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, declared in COMMANDS.items():
        help = declared.help[:1].lower() + declared.help[1:].rstrip(".")
        sub = commands.add_parser(name, help=help, description=declared.help, parents=[common])
        for flag, settings in declared.options:
            sub.add_argument(flag, **settings)
        for title, where in declared.controls.items() if name == chosen else ():
            module, _, attribute = where.partition(":")
            group = sub.add_argument_group(title)
            _add_controls(group, getattr(importlib.import_module(f"svclib.{module}"), attribute))
    return top


def _add_controls(group, settings: type) -> None:
    """Add a flag for every control of a dataclass; older spellings are hidden, and what is not given is None."""
    from svclib.utils.serialization import control_specs

    for spec in control_specs(settings):
        notes = [spec.range_text or (", ".join(spec.options) if len(spec.options) < 10 else "")]
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if not isinstance(spec.default, bool):
            notes += [f"default {spec.default}"] if spec.default is not None else []
            words = tuple(spec.metavar.split("|")[1:])
            kind = {"metavar": spec.metavar, "type": str if spec.low is None else number(spec.low, spec.high, words)}
        help = f"{spec.help} ({'; '.join(filter(None, notes))})" if any(notes) else spec.help
        for i, flag in enumerate(spec.flags):
            group.add_argument(flag, dest=spec.name, default=None, help=argparse.SUPPRESS if i else help, **kind)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """Print one sentence, not the whole usage, and leave with status 2."""
        text = message[:1].upper() + message[1:].rstrip(".")
        self.exit(2, f"{text}. '{self.prog} --help' shows what there is.\n")
