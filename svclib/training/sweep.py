"""Grid search: one run for every combination of settings, each in a folder of its own.

Finished cells are skipped, unfinished ones resumed. The table compares the loss at the last step, separately for each
definition of the loss.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from svclib.data.dataset import Dataset
from svclib.models import instrument
from svclib.training import api as training
from svclib.training.checkpoints import listing, newest, run_identity
from svclib.utils import atomic_store, config, filesystem
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import to_dict


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination and its result.

    Attributes:
        values: Name of the setting -> value, as text.
        run: Its folder.
        step, steps: Reached, and total.
        loss, validation_loss: At the last step; None before there is one.
        loss_definition: Only equal definitions are comparable.
        problem: Why it stopped early, or None.
    """

    values: dict[str, str]
    run: Path
    step: int
    steps: int
    loss: float | None
    validation_loss: float | None
    loss_definition: dict
    problem: str | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.run.name


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """``["n_harmonics=20,60", ...]`` as ``{"n_harmonics": ["20", "60"]}``.

    Raises TrainingError if there is no text, one is not NAME=V1,V2,... or a name, or one of its values, is repeated.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        found = [v.strip() for v in values.split(",") if v.strip()]
        if not equals or not name.strip() or not found:
            raise TrainingError(f"'{text}' is not NAME=V1,V2,... for example n_harmonics=20,60,100.")
        if name.strip() in grid or len(set(found)) != len(found):
            raise TrainingError(f"'{text}': a name or value is repeated.")
        grid[name.strip()] = found
    if not grid:
        raise TrainingError("A sweep needs at least one grid, for example n_harmonics=20,60,100.")
    return grid


def combinations(grid: Mapping[str, Sequence]) -> list[dict[str, str]]:
    """Every combination, the last name varying fastest."""
    return [dict(zip(grid, map(str, values), strict=True)) for values in itertools.product(*grid.values())]


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
    """Train every cell that is not finished; all presets are checked before the first one starts.

    Args:
        dataset: What all cells are trained on, as for ``training.train``, or its folder.
        runs: Folder in which every cell gets one.
        files: Presets, as for ``config.load``.
        grid: Setting -> values, e.g. ``{"n_harmonics": [20, 60, 100], "n_noise_bands": [10, 35, 65]}``.
        overrides: ``NAME=VALUE`` for all cells.
        on_progress: Called with the cell's name and its training status.
        cancelled: Called before every step; True stops like an interrupt.
        **options: Fields of ``SessionOptions`` for all cells; ``minutes`` is the time for all cells together.

    Returns:
        All cells, best first; also written to ``runs/sweep.json``. A cell whose loss became NaN is listed with its
        problem and the others go on; an interrupt ends the sweep after saving the cell.

    Raises:
        ConfigError, TrainingError: if a cell's settings cannot be used, or its folder holds a run with others.
    """
    dataset = dataset if not isinstance(dataset, (str, Path)) else Dataset.open(dataset)
    steps, minutes = options.pop("steps", None), options.pop("minutes", None)
    deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
    planned = []
    for values in combinations(grid):
        preset = config.load(files, [*overrides, *(f"{k}={v}" for k, v in values.items())])
        folder = Path(runs) / filesystem.safe_name("_".join(f"{k}-{v}" for k, v in values.items()))
        planned.append((values, folder, preset, steps or preset.training.steps))
    cells = []
    for values, folder, preset, target in planned:
        problem, stop = None, False
        if not _finished(folder, preset, target):
            left = None if deadline is None else (deadline - time.monotonic()) / 60.0
            report = None if on_progress is None else (lambda status, name=folder.name: on_progress(name, status))
            try:
                if left is None or left > 0:
                    result = training.train(
                        dataset, folder, preset, report, cancelled, steps=target, minutes=left, **options
                    )
                    stop = result.reason in ("interrupted", "cancelled")
            except TrainingError as error:
                if error.code != "diverged":
                    raise
                problem = str(error)
        cells.append(_look(values, folder, preset, target, problem))
        if stop:
            break
    cells += [_look(v, f, p, t, None) for v, f, p, t in planned[len(cells) :]]
    cells.sort(key=_rank)
    atomic_store.write_json(Path(runs) / "sweep.json", [_row(c) for c in cells])
    return cells


def table(cells: Sequence[Cell]) -> str:
    """The cells as plain text, best first, with one table for each definition of the loss."""
    blocks = []
    for definition in {str(c.loss_definition): c.loss_definition for c in cells}.values():
        own = sorted((c for c in cells if c.loss_definition == definition), key=_rank)
        names = list(own[0].values)
        rows = [[*names, "step", "loss", "held-out loss", ""]]
        for c in own:
            state = c.problem or ("" if c.step >= c.steps else "not started" if not c.step else "not finished")
            rows.append([*c.values.values(), f"{c.step}/{c.steps}", _number(c.loss), _number(c.validation_loss), state])
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]) - 1)]
        lines = ["  ".join([*(v.rjust(w) for v, w in zip(r, widths, strict=False)), r[-1]]).rstrip() for r in rows]
        meaning = ", ".join(f"{k} {v}" for k, v in definition.items())
        blocks.append("\n".join([f"Loss at the last step ({meaning}):", *lines]))
    return "\n\n".join(blocks)


def _finished(folder: Path, preset: config.Preset, target: int) -> bool:
    if not any(c.kind == "last" and c.problem is None and c.step >= target for c in listing(folder / "checkpoints")):
        return False
    found, _ = newest(folder / "checkpoints", run_identity(folder).get("run_id"))
    then = found.record["preset"]
    if then["model"] != to_dict(preset.model) or then["features"] != to_dict(preset.features):
        raise TrainingError(f"'{folder}' holds a finished run with other settings; give the sweep another folder.")
    return found.record["step"] >= target


def _look(values: dict, folder: Path, preset: config.Preset, target: int, problem: str | None) -> Cell:
    log = training.LogReader(folder)
    loss = log.loss[-1] if log.loss else None
    validated = bool(log.step) and log.validation_step[-1:] == log.step[-1:]
    validation_loss = log.validation_loss[-1] if validated else None
    step = max((c.step for c in listing(folder / "checkpoints") if c.kind == "last" and not c.problem), default=0)
    definition = instrument.loss_definition(preset.model)
    return Cell(values, folder, step, target, loss, validation_loss, definition, problem)


def _rank(cell: Cell) -> tuple:
    value = cell.validation_loss if cell.validation_loss is not None else cell.loss
    return cell.step < cell.steps, value is None, value or 0.0, cell.name


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _row(cell: Cell) -> dict:
    return {**dataclasses.asdict(cell), "run": cell.run.name}
