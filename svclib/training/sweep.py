"""Grid search: one run for every combination of settings, each in a folder of its own.

Finished cells are skipped, unfinished ones resumed. The table compares the loss at the last step, separately for each
definition of the loss.
"""

import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svclib.data.dataset import Dataset
from svclib.models import instrument
from svclib.training import api as training
from svclib.training.checkpoints import counting, listing, newest, run_identity
from svclib.training.resume import changed_settings, preset_of_session
from svclib.utils import atomic_store, config, filesystem
from svclib.utils.errors import TrainingError


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of settings, its run and result at the last step."""

    values: dict[str, str]  # setting -> value, as text
    run: Path
    step: int
    steps: int
    loss: float | None
    validation_loss: float | None
    loss_definition: dict  # only losses of equal ones are comparable
    problem: str | None = None  # why it stopped early

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.run.name

    @property
    def rank(self) -> tuple:
        """Better cells compare smaller."""
        value = self.loss if self.validation_loss is None else self.validation_loss
        return self.step < self.steps, value is None, value or 0.0, self.name


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """``["n_harmonics=20,60", ...]`` as ``{"n_harmonics": ["20", "60"]}``; TrainingError for any other text."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name, found = name.strip(), [v.strip() for v in values.split(",") if v.strip()]
        if not name or not found:
            raise TrainingError(f"'{text}' is not NAME=V1,V2,... for example n_harmonics=20,60,100.")
        if name in grid or len(set(found)) != len(found):
            raise TrainingError(f"'{text}': a name or value is repeated.")
        grid[name] = found
    if not grid:
        raise TrainingError("A sweep needs at least one grid, for example n_harmonics=20,60,100.")
    return grid


def run(
    dataset: Any,
    runs: str | Path,
    files: Sequence[str | Path] | str | Path,
    grid: Mapping[str, Sequence],
    overrides: Sequence[str] = (),
    on_progress: Callable[[str, training.Status], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> list[Cell]:
    """Train every cell that is not finished, each in a folder in ``runs``; all presets are checked before the first.

    Presets are given as for ``config.load``, with ``grid`` (setting -> values) and ``overrides`` (``NAME=VALUE`` for
    all cells); dataset, ``cancelled`` and ``options`` as for ``training.train``, but ``minutes`` is the time for all
    cells together. ``on_progress`` is called with the cell's name and its training status. Returns all cells, best
    first, and writes them to ``runs/sweep.json``; one whose loss became NaN has a ``problem``. ConfigError or
    TrainingError if a cell's settings cannot be used, or its folder holds a run with others.
    """
    dataset = Dataset.open(dataset) if isinstance(dataset, (str, Path)) else dataset
    minutes, steps, seed = (options.pop(name, None) for name in ("minutes", "steps", "seed"))
    deadline = time.monotonic() + 60.0 * (math.inf if minutes is None else minutes)
    planned = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, map(str, combination), strict=True))
        preset = config.load(files, [*overrides, *(f"{k}={v}" for k, v in values.items())])
        preset = preset_of_session(preset, dataset, steps, seed)
        folder = Path(runs) / _folder_name(values)
        _require_same(folder, preset, dataset)
        planned.append((values, folder, preset))
    problems, stop = {}, False
    for _, folder, preset in planned:
        left = (deadline - time.monotonic()) / 60.0
        if stop or left <= 0 or _last_step(folder) >= preset.training.steps:
            continue
        report = None if on_progress is None else (lambda status, name=folder.name: on_progress(name, status))
        try:
            result = training.train(dataset, folder, preset, report, cancelled, minutes=left, **options)
            stop = result.reason in ("interrupted", "cancelled")
        except TrainingError as error:
            if error.code != "diverged":
                raise
            problems[folder] = str(error)
    cells = [_look(*cell, problems.get(cell[1])) for cell in planned]
    cells.sort(key=lambda c: c.rank)
    rows = [{**dataclasses.asdict(c), "run": c.name} for c in cells]
    atomic_store.write_json(Path(runs) / "sweep.json", rows)
    return cells


def table(cells: Sequence[Cell]) -> str:
    """The cells as plain text, best first, with one table for each definition of the loss."""
    blocks = []
    for definition in {str(c.loss_definition): c.loss_definition for c in cells}.values():
        own = sorted((c for c in cells if c.loss_definition == definition), key=lambda c: c.rank)
        rows = [[*own[0].values, "step", "loss", "held-out loss", ""]]
        for c in own:
            state = c.problem or ("" if c.step >= c.steps else "not started" if not c.step else "not finished")
            losses = ["" if v is None else f"{v:.4f}" for v in (c.loss, c.validation_loss)]
            rows.append([*c.values.values(), f"{c.step}/{c.steps}", *losses, state])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1] + [0]
        lines = ["  ".join(v.rjust(w) for v, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        meaning = ", ".join(f"{k} {v}" for k, v in definition.items())
        blocks.append("\n".join([f"Loss at the last step ({meaning}):", *lines]))
    return "\n\n".join(blocks)


def _folder_name(values: Mapping[str, str]) -> str:
    """The cell's values as a name; with a hash where a file name cannot hold them in full."""
    text = "_".join(f"{k}-{v}" for k, v in values.items())
    name = filesystem.safe_name(text)
    return name if name == text else f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _require_same(folder: Path, preset: config.Preset, dataset: Any) -> None:
    """Refuse a cell whose folder holds a run of other settings or another dataset, be it finished or not."""
    if not listing(folder / "checkpoints"):
        return
    record = newest(folder / "checkpoints", run_identity(folder).get("run_id"))[0].record
    differ = "; ".join(filter(None, changed_settings(record, preset)))
    if record["dataset"]["fingerprint"] != dataset.fingerprint:
        differ = differ or "the dataset has changed"
    if differ:
        raise TrainingError(f"'{folder}' holds a run with other settings: {differ}. Give the sweep another folder.")


def _last_step(folder: Path) -> int:
    return max((c.step for c in counting(folder) if c.kind == "last"), default=0)


def _look(values: dict, folder: Path, preset: config.Preset, problem: str | None) -> Cell:
    log = training.LogReader(folder)
    last, validated = log.steps[-1:], log.validations[-1:]
    loss = last[0]["loss"] if last else None
    at_last = last and validated and validated[0]["step"] == last[0]["step"]
    validation_loss = validated[0]["validation_loss"] if at_last else None
    steps, definition = preset.training.steps, instrument.loss_definition(preset.model)
    return Cell(values, folder, _last_step(folder), steps, loss, validation_loss, definition, problem)
