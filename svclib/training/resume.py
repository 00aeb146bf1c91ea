"""Taking a run up again: which checkpoint, and what forbids going on from it."""

import contextlib
import dataclasses
import secrets
import time
from pathlib import Path
from typing import Any

import torch

from svclib.training import local_fallback, run_log
from svclib.training.checkpoint_format import Checkpoint, describe_preset, new_record, restore_optimizer
from svclib.training.checkpoints import listing, newest, run_identity
from svclib.utils import config, filesystem
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import from_dict, to_dict

LOOK_AGAIN_S = 2.0


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a session begins: a new run (``checkpoint`` None, step 0) or a checkpoint; ``told`` is worth telling."""

    checkpoint: Checkpoint | None
    run_id: str
    generation: int
    step: int
    told: list[str]


def find(
    run: Path, preset: config.Preset, dataset: Any, device: str, from_step: int | None, allow_changed_dataset: bool
) -> Start:
    """The newest usable checkpoint of a run, after everything that forbids going on was looked at.

    Args:
        run: The run's folder; it may be empty.
        preset: What it is to be trained with now.
        dataset: The opened dataset it is to be trained on now.
        device: Where; another one than last time is told.
        from_step: Begin at the checkpoint of this step, as a new generation; None: at the newest.
        allow_changed_dataset: Go on with another dataset than last time, and tell it.

    Returns:
        A checkpoint, or a new run where neither the folder nor the log knows of one.

    Raises:
        TrainingError: if there are checkpoints but none can be used, the log tells of checkpoints that are not there,
            the architecture differs, or the dataset does and that was not allowed.
    """
    folder, identity, told = run / "checkpoints", run_identity(run), []
    if run_id := identity.get("run_id"):
        told = _bring_home(run, run_id)
    kept_here = local_fallback.newest(run, run_id, from_step) if run_id else None
    try:
        found, passed_over = _look(run, run_id, from_step)
    except TrainingError as error:
        if kept_here is None:
            raise
        found, passed_over = None, [str(error)]
    told += [f"Passed over {reason}." for reason in passed_over]
    if kept_here is not None and (found is None or _order(kept_here) > _order(found)):
        found = kept_here
        told.append(f"Step {found.record['step']} lies on this machine only, in '{local_fallback.folder_of(run)}'.")
    if found is None:
        saved = [e["step"] for e in run_log.read(run)[1] if e["event"] == "saved"] or identity.get("first_saved", [])
        if saved or "damaged" in identity or from_step is not None:
            why = "its run.json is damaged" if "damaged" in identity else f"step {from_step} was asked for"
            why = f"its log says that step {saved[-1]} was saved" if saved else why
            raise TrainingError(
                f"'{folder}' shows no checkpoint, but {why}. On Drive, wait until the folder has loaded and try again; "
                "or give a new run another folder."
            )
        if filesystem.on_drive(run):
            told.append(
                f"A new run begins: '{run}' shows no checkpoint. If there should be one, stop now and wait: after a "
                "disconnect Drive may take a while to show everything."
            )
        return Start(None, identity.get("run_id") or secrets.token_hex(8), 0, 0, told)
    record = found.record
    told += _compare(run, record, preset, dataset, device, allow_changed_dataset)
    if from_step is None:
        generation = record["generation"]
    else:
        generation = 1 + max([found.record["generation"], *(c.generation for c in listing(folder))])
    return Start(found, record["run_id"], generation, record["step"], told)


def restore(start: Checkpoint, model: torch.nn.Module, ema: torch.nn.Module, optimizer: Any, scaler: Any) -> list[str]:
    """Put a checkpoint's state into model, running mean, optimiser and loss scaler; returns what is worth telling."""
    record, mean = start.record, start.part("ema")
    model.load_state_dict(start.part("model") or mean, strict=True)
    ema.load_state_dict(mean, strict=True)
    if record.get("scaler") and scaler is not None:
        scaler.load_state_dict(record["scaler"])
    if "optimizer" not in record:
        return ["This checkpoint holds weights only: the optimiser starts afresh."]
    restore_optimizer(optimizer, start.part("optimizer"), record["optimizer"])
    return []


def take_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    """Put another model's weights into one of the same architecture, as a start; singers are matched by name.

    A singer whom the other model does not know begins in the middle of those it knows.
    """
    weights = other.state_dict()
    singers, known = getattr(model, "singers", ()), getattr(other, "singers", ())
    if singers != known:
        rows = weights["conditions.singer"]
        rows = [rows[known.index(name)] if name in known else rows.mean(0) for name in singers]
        weights["conditions.singer"] = torch.stack(rows)
    model.load_state_dict(weights, strict=True)


def fits(dataset_settings: Any, preset: config.Preset) -> str | None:
    """None if a dataset has what a preset needs, else a sentence that names both sides."""
    have, need = to_dict(dataset_settings), to_dict(preset.features)
    for name in ("mel", "units"):
        if need[name] is None:
            have[name] = None
    if need["units"] and have["units"] and not need["units"]["fingerprint"]:
        need["units"]["fingerprint"] = have["units"]["fingerprint"]
    if not (differ := differences(have, need)):
        return None
    return f"The dataset does not fit preset '{preset.name}': {differ}. Prepare it with this preset."


def pinned(preset: config.Preset, dataset_settings: Any) -> config.Preset:
    """A preset whose content encoder is the one that measured the dataset, known by its fingerprint."""
    wanted, have = preset.features.units, getattr(dataset_settings, "units", None)
    if wanted is None or wanted.fingerprint or not wanted.same_but_for_fingerprint(have):
        return preset
    return dataclasses.replace(preset, features=dataclasses.replace(preset.features, units=have))


def differences(old: dict, new: dict) -> str:
    """``n_harmonics 100 there, 60 here; ...`` or an empty string."""
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return "; ".join(f"{k} {old.get(k)} there, {new.get(k)} here" for k in keys)


def _compare(run: Path, record: dict, preset: config.Preset, dataset: Any, device: str, allowed: bool) -> list[str]:
    """Refuse another architecture or, unasked, another dataset; tell what else differs."""
    then, today, told = record["preset"], describe_preset(preset), []
    if then["kind"] != today["kind"]:
        raise TrainingError(f"'{run}' holds a run of kind {then['kind']}; train {today['kind']} in another folder.")
    for part in ("features", "model"):
        old = to_dict(from_dict(type(getattr(preset, part)), then[part], part))
        if differ := differences(old, today[part]):
            raise TrainingError(
                f"'{run}' was begun with other settings: {differ}. Use those to go on, or another folder for a new run."
            )
    if differ := differences({**then["training"], "steps": 0}, {**today["training"], "steps": 0}):
        told.append(f"Training settings changed since step {record['step']}: {differ}.")
    if record["dataset"]["fingerprint"] != dataset.fingerprint:
        said = f"The dataset changed since step {record['step']}: {_changes(record['dataset']['recordings'], dataset)}."
        if not allowed:
            raise TrainingError(f"{said} Allow the changed dataset to go on with it, or begin a new run elsewhere.")
        told.append(f"{said} Going on with it, as asked.")
    if record["device"] != device or record["versions"] != new_record("", 0, preset, dataset)["versions"]:
        told.append("Another device or version than last time: the result is as good, but not bit-identical.")
    return told


def _look(run: Path, run_id: str | None, from_step: int | None) -> tuple[Checkpoint | None, list[str]]:
    """``checkpoints.newest``; where a file on Drive could not be used, a second look: its errors often pass."""
    found, passed_over = newest(run / "checkpoints", run_id, from_step)
    if found is not None and passed_over and filesystem.on_drive(run):
        time.sleep(LOOK_AGAIN_S)
        with contextlib.suppress(OSError, TrainingError):  # worse than before: what was found stands
            again, still = newest(run / "checkpoints", run_id, from_step)
            if again is not None and _order(again) >= _order(found):
                return again, still
    return found, passed_over


def _bring_home(run: Path, run_id: str) -> list[str]:
    """Copy what an earlier session had to keep on this machine; returns what is to be told."""
    try:
        brought = local_fallback.come_home(run, run_id)
    except OSError as error:
        return [f"{error} What was kept on this machine stays there for now."]
    return [f"{len(brought)} checkpoints kept on this machine were copied to '{run}'."] if brought else []


def _order(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.record["generation"], checkpoint.record["step"]


def _changes(old: dict[str, str], dataset: Any) -> str:
    new = {r["name"]: str(r.get("sha256", ""))[:16] for r in dataset.recordings}
    changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
    if old == new:
        return "the recordings are the same, but not which of them are held out, sung by whom, or how they were cut"
    return f"{len(new.keys() - old.keys())} recordings added, {len(old.keys() - new.keys())} removed, {changed} changed"
