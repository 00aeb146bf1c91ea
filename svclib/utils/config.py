"""Presets in gin, read safely. The only importer of gin in the project.

A preset binds the arguments of plain settings classes (``features.FeatureSettings``, ``ddsp.DdspSettings``,
``training.TrainingSettings``) and one root, :func:`preset`. Library code never asks gin for anything: it receives the
settings. A gin file can run code, so before gin sees any file its statements are checked: it may import only svclib's
modules, include only presets, and bind only parameters of svclib's settings.
"""

import dataclasses
import difflib
import importlib
import re
import tokenize
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import gin
from gin import config_parser
from svclib.utils.errors import ConfigError

MAX_CHARACTERS = 200_000
_HEADER = "from __gin__ import dynamic_registration"
# What a preset may import, and from where: the packages that hold settings classes.
_HEADER_MODULE = "__gin__.dynamic_registration"
_HOMES = {
    "config": "svclib.utils",
    "features": "svclib",
    "content_features": "svclib.features",
    "training": "svclib",
    "ddsp": "svclib.models",
    "diffusion": "svclib.models",
    "diffwave": "svclib.models",
    "vocoders": "svclib.models",
}
# Spellings of earlier versions, read with a warning.
_FORMER = {f"svclib.{name}": f"{home}.{name}" for name, home in _HOMES.items() if home != "svclib"}
_FORMER["svclib.contentvec"] = "svclib.features.content_features"
_FORMER_CLASSES = {"MelContract": "MelConfig"}


@gin.configurable
def preset(features=gin.REQUIRED, model=gin.REQUIRED, training=gin.REQUIRED):
    """The root every gin file binds: how recordings are measured, what is trained, and how."""
    return features, model, training


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a gin file says, as plain settings objects.

    Attributes:
        name: Names of the files it was read from, joined by ``+``.
        features: ``features.FeatureSettings``.
        model: Settings of one model kind, such as ``ddsp.DdspSettings``; has ``kind`` and ``build(statistics)``.
        training: ``training.TrainingSettings``.
        text: The operative gin text: a record for people that rebuilds the same preset.
    """

    name: str
    features: Any
    model: Any
    training: Any
    text: str


def preset_folder() -> Path:
    """The folder of the project's presets: ``svclib/gin`` in a wheel, ``gin/`` beside the package in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "gin"
    return inside if (inside / "base.gin").is_file() else package.parent / "gin"


def preset_names() -> list[str]:
    """Names of the presets that come with the project, without overlays such as ``tiny`` and ``demo``."""
    return sorted(p.stem for p in preset_folder().glob("*.gin") if p.stem not in ("base", "tiny", "demo"))


def describe(name: str) -> str:
    """The comment a preset begins with: what it is for, what it costs, what to expect."""
    lines = []
    for line in resolve(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines)


def resolve(path_or_name: str | Path) -> Path:
    """A path to a gin file, or the name of a preset (``ddsp_small``), as a path.

    Where there is neither, a ConfigError names the presets, and the nearest one if one is near.
    """
    path = Path(path_or_name)
    if path.suffix == ".gin" and path.is_file():
        return path
    own = preset_folder() / f"{path.stem if path.suffix == '.gin' else path.name}.gin"
    if own.is_file() and len(path.parts) == 1:
        return own
    names = preset_names()
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise ConfigError(f"There is no preset '{path_or_name}'. {hint}Presets: {', '.join(names)}; or give a .gin file.")


class _Deny(config_parser.ParserDelegate):
    """Lets values through that are plain literals, macros and references; the statements are checked by the caller."""

    def configurable_reference(self, scoped_name, evaluate):
        return ("reference", scoped_name, evaluate)

    def macro(self, macro_name):
        return ("macro", macro_name)


def check_text(text: str, source: str) -> list:
    """Refuse gin text that could do more than set svclib's parameters.

    Args:
        text: Is only parsed: nothing in it is imported, included or run.
        source: Where it came from, for messages: a file, or ``override``.

    Returns:
        The statements as gin's parser gives them, in the order of the text.

    Raises:
        ConfigError: naming the source, the line and what is allowed.
    """
    try:
        statements = list(config_parser.ConfigParser(text, _Deny()))
    except Exception as error:  # beside SyntaxError, gin's parser lets through what Python's own parts raise
        raise _not_gin(error, source) from None
    for statement in statements:
        _check_statement(statement, source)
    return statements


def _not_gin(error: Exception, source: str) -> ConfigError:
    number = getattr(error, "lineno", None)
    line = f", line {number}" if number else ""
    return ConfigError(f"{source}{line}: this is not gin syntax ({_first_line(error.args[0] if error.args else '')}).")


def _first_line(error: Exception | str) -> str:
    text = str(error).strip() or type(error).__name__
    return "".join(c if c.isprintable() else " " for c in text.splitlines()[0][:200])


def _expand(path: Path) -> list[tuple[str, str]]:
    """Checked ``(text, source)`` of a gin file, after those of the presets it includes.

    Includes are resolved here, to the project's presets and nothing else: gin itself would look into the working
    folder first, at a file nobody checked.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text ({error.__class__.__name__}); give a .gin file.") from None
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{path} has more than {MAX_CHARACTERS} characters; a preset is a page of text.")
    # what str.splitlines takes for the end of a line would make the lines that are used others than those checked
    odd = next((c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Zl", "Zp")), None)
    if odd:
        line = text[: text.index(odd)].count("\n") + 1
        raise ConfigError(f"{path}, line {line}: holds the control character {odd!a}; write plain text.")
    for former, new in _FORMER_CLASSES.items():
        if re.search(rf"\b{former}\b", text):
            text = re.sub(rf"\b{former}\b", new, text)
            warnings.warn(f"{path}: '{former}' is now called '{new}'; write that.", FutureWarning, stacklevel=3)
    lines, before = text.split("\n"), []
    for statement in check_text(text, str(path)):
        if isinstance(statement, config_parser.ImportStatement) and statement.module in _FORMER:
            number = statement.location.line_num
            lines[number - 1] = new = _import_line(
                _FORMER[statement.module], statement.alias or statement.module.split(".")[-1]
            )
            warnings.warn(
                f"{path}, line {number}: '{statement.module}' has moved; write: {new}", FutureWarning, stacklevel=3
            )
        if isinstance(statement, config_parser.IncludeStatement):
            before += _expand(preset_folder() / statement.filename)
            lines[statement.location.line_num - 1] = ""
    text = "\n".join(lines)
    if any(isinstance(s, config_parser.IncludeStatement) for s in check_text(text, str(path))):
        raise ConfigError(f"{path}: an include has to stand alone on one line.")
    return [*before, (text, str(path))]


def _check_statement(statement, source: str) -> None:
    where = f"{source}, line {statement.location.line_num}"
    if isinstance(statement, config_parser.ImportStatement):
        allowed = {f"{home}.{name}" for name, home in _HOMES.items()} | _FORMER.keys() | {_HEADER_MODULE}
        if statement.module not in allowed:
            raise ConfigError(f"{where}: imports '{statement.module}'; a preset may import only svclib's settings.")
    elif isinstance(statement, config_parser.IncludeStatement):
        name = statement.filename
        if Path(name).name != name or not (preset_folder() / name).is_file():
            raise ConfigError(f"{where}: includes '{name}'; a preset may include only the project's presets by name.")
    elif isinstance(statement, config_parser.BindingStatement):
        if statement.scope:
            raise ConfigError(f"{where}: '{statement.scope}/' is a scope; presets are flat.")
        _check_value(statement.value, where)
        if statement.arg_name:
            _check_selector(statement.selector, where)
    elif isinstance(statement, config_parser.BlockDeclaration):
        _check_selector(statement.selector, where)


def _check_selector(selector: str, where: str) -> None:
    if not re.fullmatch(r"config\.preset|[a-z_]+\.[A-Z]\w*(Settings|Config)", selector):
        raise ConfigError(f"{where}: '{selector}' is not a settings class; write for example ddsp.DdspSettings.")


def _check_value(value, where: str) -> None:
    if isinstance(value, tuple) and len(value) == 3 and value[0] == "reference":
        _check_selector(value[1], where)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_value(key, where)
            _check_value(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_value(item, where)


def load(files: list[str | Path] | str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Preset:
    """Read gin files (later ones win) and ``NAME=VALUE`` overrides into settings; leaves no state.

    Args:
        files: Paths or preset names, e.g. ``["ddsp_small", "tiny"]``.
        overrides: ``n_harmonics=20`` (a field of any settings class of the preset),
            ``ddsp.DdspSettings.n_harmonics=20`` or a macro, ``N_HARMONICS=20``.

    Returns:
        The settings, the names of the files and the gin text that was used, overrides included.

    Raises:
        ConfigError: for anything that cannot be used, with file and line.
    """
    paths = [resolve(f) for f in ([files] if isinstance(files, (str, Path)) else files)]
    if not paths:
        raise ConfigError("No preset was given; name at least one, for example --config ddsp_small.")
    texts = [piece for path in paths for piece in _expand(path)]
    gin.clear_config()
    try:
        for text, source in texts:
            _guarded(lambda text=text: gin.parse_config(text), source)
        built = _guarded(preset, ", ".join(p.name for p in paths))
        lines = [_override_line(o, built) for o in overrides]
        if lines:
            modules = sorted({line.split(".")[0] for line in lines if "." in line.split("=")[0]})
            override_text = "\n".join(
                [_HEADER, *(_import_line(f"{_HOMES[m]}.{m}", m) for m in modules if m in _HOMES), *lines]
            )
            check_text(override_text, "override")
            _guarded(lambda: gin.parse_config(override_text), "override")
            built = _guarded(preset, "override")
        text = gin.operative_config_str()
    finally:
        gin.clear_config()
    features, model, settings = built
    return Preset("+".join(p.stem for p in paths), features, model, settings, text)


def _override_line(override: str, built: tuple) -> str:
    for former, new in _FORMER_CLASSES.items():
        override = re.sub(rf"\b{former}\b", new, override)
    name, equals, value = override.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or not value:
        raise ConfigError(f"'{override}' is not NAME=VALUE, for example n_harmonics=20.")
    try:
        config_parser.ConfigParser(value, _Deny()).parse_value()
    except (SyntaxError, tokenize.TokenError):
        value = repr(value)
    if "." in name or name.isupper():
        return f"{name} = {value}"
    owners = [s for s in built if name in {f.name for f in dataclasses.fields(s)}]
    if not owners:
        every = sorted({f.name for s in built for f in dataclasses.fields(s)})
        near = difflib.get_close_matches(name, every, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" Known names: {', '.join(every)}."
        raise ConfigError(f"No setting is called '{name}'.{hint}")
    owner = type(owners[0])
    parts = owner.__module__.split(".")
    home = next(part for part in reversed(parts) if part in _HOMES)
    return f"{home}.{owner.__name__}.{name} = {value}"


def _import_line(module: str, alias: str) -> str:
    home, _, name = module.rpartition(".")
    return f"from {home} import {name}" + (f" as {alias}" if alias != name else "")


def _guarded(call, source: str):
    """Turn gin's errors into one sentence; settings classes raise ValueError with their own."""
    try:
        return call()
    except SyntaxError as error:
        raise _not_gin(error, source) from None
    except Exception as error:  # whatever gin, an import or a settings class makes of a stranger's values
        raise ConfigError(f"{source}: {_plainly(error)}") from error


def _plainly(error: Exception) -> str:
    """gin's error in this project's words, with the nearest name where one was not found."""
    first = _first_line(error)
    unknown = re.match(r"Configurable '(\w+)\.(\w+)' doesn't have a parameter named '(\w+)'", first)
    if unknown:
        module, owner, name = unknown.groups()
        fields = dataclasses.fields(getattr(importlib.import_module(f"{_HOMES[module]}.{module}"), owner))
        near = difflib.get_close_matches(name, [f.name for f in fields], n=1)
        return f"{module}.{owner} has no '{name}'." + (f" Did you mean '{near[0]}'?" if near else "")
    if "recursion depth" in first:
        return "a macro (%NAME) is defined by itself."
    if first.startswith("macro() missing"):
        return "a macro (%NAME) is used that no line gives a value."
    return first if first.endswith((".", "?")) else f"{first}."
