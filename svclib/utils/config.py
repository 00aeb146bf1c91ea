"""Presets in gin, read safely.

A preset binds the arguments of plain settings classes (``features.FeatureSettings``, ``ddsp.DdspSettings``,
``training.TrainingSettings``) and one root, :func:`preset`. Library code never queries gin: it receives the settings. A
gin file can run code, so its statements are checked before gin parses them: it may import only modules with settings,
include only presets, and bind only parameters of settings.
"""

import contextlib
import dataclasses
import importlib
import re
import tokenize
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser as parser
from svclib.utils import budget
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, did_you_mean, first_line

MAX_CHARACTERS = 200_000
_HEADER = "from __gin__ import dynamic_registration"
# Modules that a preset may import, by the name under which it binds their settings.
_MODULES = {
    "config": "svclib.utils.config",
    "features": "svclib.features",
    "content_features": "svclib.features.content_features",
    "training": "svclib.training",
    "ddsp": "svclib.models.ddsp",
    "diffusion": "svclib.models.diffusion",
    "diffwave": "svclib.models.diffwave",
    "vocoders": "svclib.models.vocoders",
}
# Spellings of earlier versions, read with a warning.
_FORMER = {f"svclib.{name}": module for name, module in _MODULES.items() if module != f"svclib.{name}"}
_FORMER["svclib.contentvec"] = "svclib.features.content_features"
_FORMER_CLASSES = {"MelContract": "MelConfig"}


@gin.configurable
def preset(features=gin.REQUIRED, model=gin.REQUIRED, training=gin.REQUIRED):
    """The root that every gin file binds: settings of features, model and training."""
    return features, model, training


@dataclasses.dataclass(frozen=True)
class Preset:
    """The contents of gin files as plain settings objects."""

    name: str  # of the files it was read from, joined by ``+``
    features: Any  # ``features.FeatureSettings``
    model: Any  # settings of one model kind, such as ``ddsp.DdspSettings``; has ``kind`` and ``build(statistics)``
    training: Any  # ``training.TrainingSettings``
    text: str  # the operative gin text: a record for people that rebuilds the same preset


def preset_folder() -> Path:
    """The folder of the project's presets: ``svclib/gin`` in a wheel, ``gin/`` beside the package in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "gin"
    return inside if (inside / "base.gin").is_file() else package.parent / "gin"


def preset_names() -> list[str]:
    """Names of the presets that come with the project, without the overlays ``tiny`` and ``distilled``."""
    overlays = ("base", "tiny", "distilled")
    return sorted(p.stem for p in preset_folder().glob("*.gin") if p.stem not in overlays)


def describe(name: str) -> str:
    """The comment at the beginning of a preset: its purpose, its cost and the result to expect."""
    comment = re.match(r"(#.*\n)*", resolve(name).read_text(encoding="utf-8"))[0]
    return "\n".join(line.lstrip("# ").rstrip() for line in comment.splitlines())


def resolve(path_or_name: str | Path) -> Path:
    """A path to a gin file, or the name of a preset (``ddsp_small``), as a path; a ConfigError names the presets."""
    path = Path(path_or_name)
    if path.suffix == ".gin" and path.is_file():
        return path
    own = preset_folder() / f"{path.stem if path.suffix == '.gin' else path.name}.gin"
    if own.is_file() and len(path.parts) == 1:
        return own
    names = preset_names()
    hint = f"{did_you_mean(path.stem, names)} Presets: {', '.join(names)}; or give a .gin file."
    raise ConfigError(f"There is no preset '{path_or_name}'.", hint=hint.strip())


def load(files: list[str | Path] | str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Preset:
    """Read gin files (later ones win) and ``NAME=VALUE`` overrides into settings; gin's own state stays as it was.

    ``files`` are paths or preset names, e.g. ``["ddsp_small", "tiny"]``; an override is ``n_harmonics=20`` (a field of
    any settings of the preset, outer ones before nested ones), ``ddsp.DdspSettings.n_harmonics=20`` or a macro,
    ``N_HARMONICS=20``. A ConfigError names file and line of anything that cannot be used.
    """
    paths = [resolve(f) for f in ([files] if isinstance(files, (str, Path)) else files)]
    if not paths:
        raise ConfigError("No preset was given; name at least one, for example --config ddsp_small.")
    texts = [piece for path in paths for piece in _expand(path)]
    _require_few_values([s for text, source in texts for s in _statements(text, source)])
    with _own_gin_state():
        for text, source in texts:
            with _errors_of(source):
                gin.parse_config(text)
        with _errors_of(", ".join(p.name for p in paths)):
            built = preset()
        if overrides:
            lines = [_override_line(o, built) for o in overrides]
            aliases = sorted({line.split(".")[0] for line in lines if "." in line.split("=")[0]} & _MODULES.keys())
            text = "\n".join([_HEADER, *(_import_line(_MODULES[a], a) for a in aliases), *lines])
            _statements(text, "override")
            with _errors_of("override"):
                gin.parse_config(text)
                built = preset()
        text = gin.operative_config_str()
    features, model, training = built
    return Preset("+".join(p.stem for p in paths), features, model, training, text)


@contextlib.contextmanager
def _own_gin_state():
    """Work with an empty gin configuration and put the caller's back afterwards; gin has no public function for it."""
    tables = (gin_config._CONFIG, gin_config._SINGLETONS, gin_config._OPERATIVE_CONFIG)
    saved, imports = [dict(table) for table in tables], set(gin_config._IMPORTS)
    locked = gin.config_is_locked()
    gin.clear_config()
    try:
        yield
    finally:
        gin.clear_config()
        for table, entries in zip(tables, saved, strict=True):
            table.update(entries)
        gin_config._IMPORTS.update(imports)
        gin_config._set_config_is_locked(locked)


# Safe text ------------------------------------------------------------------------------------------------------------


def _expand(path: Path) -> list[tuple[str, str]]:
    """Checked ``(text, source)`` of a gin file, after those of the presets it includes.

    Includes are resolved here, to the project's presets only: gin itself would look into the working folder first.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text ({error.__class__.__name__}); give a .gin file.") from None
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{path} has more than {MAX_CHARACTERS} characters; a preset is a page of text.")
    # str.splitlines breaks at more characters than gin: the lines used could differ from those checked
    odd = next((c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Zl", "Zp")), None)
    if odd:
        line = text[: text.index(odd)].count("\n") + 1
        raise ConfigError(f"{path}, line {line}: holds the control character {odd!a}; write plain text.")
    former = [f"{new} (not {old})" for old, new in _FORMER_CLASSES.items() if re.search(rf"\b{old}\b", text)]
    text = _present_names(text)
    lines, before = text.split("\n"), []
    for statement in _statements(text, str(path)):
        at = statement.location.line_num - 1
        if isinstance(statement, parser.ImportStatement) and statement.module in _FORMER:
            alias = statement.alias or statement.module.split(".")[-1]
            lines[at] = _import_line(_FORMER[statement.module], alias)
            former.append(lines[at])
        if isinstance(statement, parser.IncludeStatement):
            before += _expand(preset_folder() / statement.filename)
            lines[at] = ""
    if former:
        warnings.warn(f"{path} has spellings of an earlier version; write: {'; '.join(former)}.", FutureWarning, 3)
    text = "\n".join(lines)
    if any(isinstance(s, parser.IncludeStatement) for s in _statements(text, str(path))):
        raise ConfigError(f"{path}: an include has to stand alone on one line.")
    return [*before, (text, str(path))]


def _present_names(text: str) -> str:
    """Gin text with the present names of renamed settings classes."""
    for former, present in _FORMER_CLASSES.items():
        text = re.sub(rf"\b{former}\b", present, text)
    return text


class _Deny(parser.ParserDelegate):
    """Parses references and macros without resolving them."""

    def configurable_reference(self, scoped_name, evaluate):
        return ("reference", scoped_name, evaluate)

    def macro(self, macro_name):
        return ("macro", macro_name)


def _statements(text: str, source: str) -> list:
    """Parse gin text, running nothing, and refuse statements that do more than set svclib's parameters."""
    try:
        statements = list(parser.ConfigParser(text, _Deny()))
    except Exception as error:  # gin's parser raises more than SyntaxError
        raise _not_gin(error, source) from None
    for statement in statements:
        _check_statement(statement, f"{source}, line {statement.location.line_num}")
    return statements


def _check_statement(statement, where: str) -> None:
    if isinstance(statement, parser.ImportStatement):
        if statement.module not in {*_MODULES.values(), *_FORMER, "__gin__.dynamic_registration"}:
            raise ConfigError(f"{where}: imports {statement.module!a}; a preset may import only svclib's settings.")
    elif isinstance(statement, parser.IncludeStatement):
        name = statement.filename
        if Path(name).name != name or not (preset_folder() / name).is_file():
            raise ConfigError(f"{where}: includes {name!a}; a preset may include only the project's presets by name.")
    elif isinstance(statement, parser.BindingStatement):
        if statement.scope:
            raise ConfigError(f"{where}: {statement.scope + '/'!a} is a scope; presets are flat.")
        _check_value(statement.value, where)
        if statement.arg_name:
            _check_selector(statement.selector, where)
    elif isinstance(statement, parser.BlockDeclaration):
        _check_selector(statement.selector, where)


def _check_selector(selector: str, where: str) -> None:
    if not re.fullmatch(r"config\.preset|[a-z_]+\.[A-Z]\w*(Settings|Config)", selector):
        raise ConfigError(f"{where}: {selector!a} is not a settings class; write for example ddsp.DdspSettings.")


def _require_few_values(statements: list) -> None:
    """Refuse macros that stand for more values than a preset may have: each may hold others several times."""
    values: dict[str, Any] = {s.selector: s.value for s in statements if isinstance(s, parser.BindingStatement)}
    counts: dict[str, int] = {}

    def count(value: Any) -> int:
        if isinstance(value, tuple) and len(value) == 2 and value[0] == "macro":
            name = value[1]
            if name not in counts:
                counts[name] = 1  # while it is counted: gin refuses a macro of itself
                counts[name] = count(values.get(name))
            return counts[name]
        if isinstance(value, (list, tuple, dict)):
            return sum(map(count, [*value, *value.values()] if isinstance(value, dict) else value))
        return 1

    for name, value in values.items():
        cost = Cost(values=count(value))
        budget.require("preset", f"'{name}', with the values of its macros,", cost, error=ConfigError)


def _check_value(value, where: str) -> None:
    if isinstance(value, tuple) and len(value) == 3 and value[0] == "reference":
        _check_selector(value[1], where)
    elif isinstance(value, (list, tuple, dict)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_value(item, where)


def _import_line(module: str, alias: str) -> str:
    home, _, name = module.rpartition(".")
    return f"from {home} import {name}" + (f" as {alias}" if alias != name else "")


def _override_line(override: str, built: tuple) -> str:
    name, _, value = (part.strip() for part in _present_names(override).partition("="))
    if not name or not value:
        raise ConfigError(f"'{override}' is not NAME=VALUE, for example n_harmonics=20.")
    try:
        parser.ConfigParser(value, _Deny()).parse_value()
    except (SyntaxError, tokenize.TokenError):
        value = repr(value)
    if "." in name or name.isupper():
        return f"{name} = {value}"
    settings = list(built)
    for one in settings:  # grows: outer ones before those that are fields of them
        settings += [v for n in _field_names(one) if dataclasses.is_dataclass(v := getattr(one, n))]
    owner = next((type(s) for s in settings if name in _field_names(s)), None)
    if owner is None:
        known = sorted({field for s in settings for field in _field_names(s)})
        hint = did_you_mean(name, known) or f"Known names: {', '.join(known)}."
        raise ConfigError(f"There is no setting '{name}'.", hint=hint)
    aliases = [a for a, module in _MODULES.items() if f"{owner.__module__}.".startswith(f"{module}.")]
    alias = max(aliases, key=lambda a: len(_MODULES[a]), default="features")
    return f"{alias}.{owner.__name__}.{name} = {value}"


def _field_names(settings: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(settings)]


@contextlib.contextmanager
def _errors_of(source: str):
    """Turn gin's errors into one sentence; settings classes raise ValueError with their own."""
    try:
        yield
    except SyntaxError as error:
        raise _not_gin(error, source) from None
    except Exception as error:  # gin, an import or a settings class, on untrusted values
        raise ConfigError(f"{source}: {_plainly(error)}") from error


def _not_gin(error: Exception, source: str) -> ConfigError:
    number = getattr(error, "lineno", None)
    line = f", line {number}" if number else ""
    why = first_line(error.args[0] if error.args else error)  # a SyntaxError's own text names the line again
    return ConfigError(f"{source}{line}: this is not gin syntax ({why}).")


def _plainly(error: Exception) -> str:
    """gin's error as a sentence, with the nearest name where one was not found."""
    first = first_line(error)
    if unknown := re.match(r"Configurable '(\w+)\.(\w+)' doesn't have a parameter named '(\w+)'", first):
        alias, owner, name = unknown.groups()
        known = _field_names(getattr(importlib.import_module(_MODULES[alias]), owner))
        return f"{alias}.{owner} has no '{name}'. {did_you_mean(name, known)}".strip()
    if "recursion depth" in first:
        return "a macro (%NAME) is defined by itself."
    if first.startswith("macro() missing"):
        return "a macro (%NAME) is used that no line gives a value."
    return first if first.endswith((".", "?")) else f"{first}."
