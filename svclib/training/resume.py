"""Start of a session: the checkpoint to resume from, the differences that forbid it, or initial weights."""

import contextlib
import dataclasses
import math
import secrets
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from svclib import models
from svclib.models import instrument
from svclib.training import checkpoint_writer, checkpoints, run_log
from svclib.training.checkpoints import Checkpoint, newest
from svclib.training.session import BASE, SessionOptions
from svclib.utils import config, filesystem
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import from_dict, to_dict

RETRY_AFTER_S = 2.0
_SEARCH_RANGE = {"f0_min_hz", "f0_max_hz"}  # of the tracker: no weight depends on it
BASE_PATH = Path(models.__file__).with_name("base.zip")
# Settings of a diffusion model that may differ between an instrument and a run that starts from it.
_RETRAINABLE = instrument.SAMPLING | {"code_noise", "warp_range", "equaliser_db"}
_RETRAINABLE |= {"coarse_weight", "condition_dropout", "vocoder_weight", "vocoder_rows"}


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """Start of a session: a checkpoint, or a new run (``checkpoint`` None, step 0); with messages for the user."""

    checkpoint: Checkpoint | None
    preset: config.Preset  # of the session, with what the run keeps of an earlier version's
    run_id: str
    generation: int
    step: int
    messages: list[str]
    lineage: list[list[int]] = dataclasses.field(default_factory=list)  # that of ``CheckpointInfo``


def find_checkpoint(
    run: Path, preset: config.Preset, dataset: Any, device: str, options: SessionOptions
) -> ResumePoint:
    """The newest usable checkpoint of a run, or a new run if neither the folder nor the log knows of one.

    ``options.from_step`` resumes from that step, as a new generation. TrainingError if there are checkpoints but none
    can be used, the log lists checkpoints that are not there, or architecture or dataset differ.
    """
    identity, from_step, messages, local = checkpoints.run_identity(run), options.from_step, [], None
    if run_id := identity.get("run_id"):
        try:
            if moved := checkpoint_writer.sync_back(run, run_id):
                messages.append(f"{len(moved)} checkpoints kept on this machine were copied to '{run}'.")
        except OSError as error:
            messages.append(f"{error} Local checkpoints stay on this machine for now.")
        local = checkpoint_writer.newest(run, run_id, from_step)
    try:
        found, unused = _newest(run, run_id, from_step)
    except TrainingError as error:
        if local is None:
            raise
        found, unused = None, [str(error)]
    messages += [f"Not used: {reason}." for reason in unused]
    if local is not None and (found is None or local.order > found.order):
        found, kept = local, checkpoint_writer.local_folder(run)
        messages.append(f"Step {found.record['step']} lies on this machine only, in '{kept}'.")
    if found is None:
        _require_new(run, identity, from_step)
        if filesystem.on_drive(run):
            messages.append(
                f"A new run begins: '{run}' shows no checkpoint. If there should be one, stop now and wait: after a "
                "disconnect Drive may take a while to show everything."
            )
        return ResumePoint(None, preset, run_id or secrets.token_hex(8), 0, 0, messages)
    record = found.record
    preset = _with_excitation_of_run(preset, record, messages)
    _compare(run, record, preset, dataset, device, options.allow_changed_dataset, messages)
    generation, lineage = record["generation"], record.get("lineage") or []
    if from_step is not None:
        others, best = checkpoints.listing(run / "checkpoints"), record["metrics"]["best"]
        lineage = [*lineage, [generation, record["step"]]]
        generation = 1 + max([generation, *(c.generation for c in others)])
        if best is not None and not any(c.kind == "best" and c.step == best[0] for c in others):
            record["metrics"]["best"] = None  # the weights of that step are deleted
    return ResumePoint(found, preset, record["run_id"], generation, record["step"], messages, lineage)


def restore(
    checkpoint: Checkpoint, model: torch.nn.Module, ema: torch.nn.Module, optimizer: Any, scaler: Any
) -> list[str]:
    """Load a checkpoint into model, EMA, optimiser and loss scaler; returns messages."""
    record, averaged = checkpoint.record, checkpoint.part("ema")
    model.load_state_dict(checkpoint.part("model") or averaged, strict=True)
    ema.load_state_dict(averaged, strict=True)
    if record.get("scaler") and scaler is not None:
        scaler.load_state_dict(record["scaler"])
    if "optimizer" not in record:
        return ["This checkpoint holds weights only: the optimiser starts afresh."]
    checkpoints.restore_optimizer(optimizer, checkpoint.part("optimizer"), record["optimizer"])
    return []


def initial_instrument(init: str | Path | None, preset: config.Preset) -> tuple[instrument.Instrument | None, str]:
    """The instrument of the same architecture that a run starts from, or (``BASE``) the base model where it is one.

    None stands for fresh weights; the sentence gives the reason.
    """
    path, why = (init, "as asked") if init != BASE else base_model(preset)
    if path is None:
        return None, f"This run starts from fresh weights: {why}."
    other = instrument.open(path)
    if differ := architecture_differences(other, preset):
        raise TrainingError(f"'{other.name}' cannot initialise this preset: {differ}.")
    return other, f"This run starts from the weights of '{other.name}', {why}."


def require_teacher(other: instrument.Instrument | None, singers: Collection[str], begun_with: dict | None) -> None:
    """Refuse a student without teacher, of singers that it does not know, or one that resumes with another."""
    if other is None:
        raise TrainingError("A student needs a teacher: give the instrument that it is distilled from.")
    if unknown := sorted(set(singers) - set(other.model.singers)):
        raise TrainingError(f"The teacher '{other.name}' does not know {', '.join(unknown)}, a singer of the dataset.")
    if begun_with is not None and begun_with["sha256"] != other.sha256:
        raise TrainingError(
            f"The run was begun with the teacher '{begun_with['name']}' (file {begun_with['sha256'][:8]}), and "
            f"'{other.name}' ({other.sha256[:8]}) is another. Give that one to resume."
        )


def base_model(preset: config.Preset) -> tuple[Path | None, str]:
    """The shipped diffusion model of several singers, or None where the preset builds another network; with why."""
    if preset.model.kind != "diffusion":
        return None, f"there is no base model for '{preset.name}'"
    if not BASE_PATH.is_file():
        return None, "this installation of svclib has no base model"
    if differ := architecture_differences(instrument.open(BASE_PATH), preset):
        return None, f"the base model is another network than '{preset.name}' ({differ})"
    return BASE_PATH, "the base model of several singers"


def _at_rate(features: dict, ratio: float) -> dict:
    """Features on the same grid of time and frequency at ``ratio`` times their sample rate."""
    sizes = ("sample_rate_hz", "hop_samples", "loudness_n_fft", "n_fft", "window_samples")
    scaled = {name: round(value * ratio) if name in sizes else value for name, value in features.items()}
    return scaled | ({"mel": _at_rate(scaled["mel"], ratio)} if scaled.get("mel") else {})


def architecture_differences(other: instrument.Instrument, preset: config.Preset) -> str:
    """Differences of an instrument and a preset in features or in the meaning of weights; empty if there are none.

    A mel of the same bands and frames at another sample rate is the same but for its level, see :func:`init_from`;
    its vocoder may have other noise bands and losses.
    """
    ratio = preset.features.sample_rate_hz / other.features.sample_rate_hz
    theirs, mine = to_dict(other.model.settings), to_dict(preset.model)
    features = _at_rate(to_dict(other.features), ratio), to_dict(preset.features)
    if theirs.get("vocoder") and mine.get("vocoder"):  # init_from carries over what both excitations have
        free = ("excitation",) if ratio == 1 else ("excitation", "n_noise_bands", "fft_sizes")
        theirs["vocoder"] |= {name: mine["vocoder"][name] for name in free}
    if "retrieval_size" in theirs:
        theirs["retrieval_size"] = 0  # init_from leaves it out
    if mine.get("prediction") == "consistency":
        mine["prediction"] = "residual"  # of the teacher
    for model in (theirs, mine):
        if model.get("content") == "whisper":
            model["content"] = "words"  # the same code space
    for record in features:
        if (record.get("units") or {}).get("kind") == "whisper":
            record["units"] = None
    ignored = _RETRAINABLE | _SEARCH_RANGE
    return differences(theirs, mine, ignored) or differences(*features, ignored=ignored)


def init_from(model: torch.nn.Module, other: torch.nn.Module) -> None:
    """Copy the weights of another model of the same architecture; embeddings of singers are matched by name.

    A singer unknown to the other model starts from the mean of its singers; its retrieval codebook is not copied. A
    vocoder of another excitation gives the outputs that both have. At another sample rate an STFT of the same duration
    and bands has the sum of as many more samples: magnitudes grow by the ratio of the rates, the range of the log-mels
    moves by its logarithm.
    """
    weights = {name: value for name, value in other.state_dict().items() if not name.startswith("codebook.")}
    singers, known = getattr(model, "singers", ()), getattr(other, "singers", ())
    if singers != known:
        rows = weights["conditions.singer"]
        rows = [rows[known.index(name)] if name in known else rows.mean(0) for name in singers]
        weights["conditions.singer"] = torch.stack(rows)
    for name, mine in model.state_dict().items():  # outputs that only one excitation of a vocoder has stay as they are
        if name.startswith("vocoder.network.last.") and len(mine) != len(weights[name]):
            n = min(len(mine), len(weights[name]))
            weights[name] = torch.cat([weights[name][:n], mine[n:]])
    if (contract := getattr(model, "contract", None)) and "mel_low" in weights:
        moved = math.log(contract.sample_rate_hz / other.contract.sample_rate_hz) / contract.nepers_per_unit
        weights |= {name: weights[name] + moved for name in ("mel_low", "mel_high")}
    model.load_state_dict(weights, strict=True)


def fits(dataset: Any, preset: config.Preset) -> str | None:
    """None if a dataset has the features and labels a preset needs, else a sentence that names the differences."""
    labels = tuple(getattr(preset.model, "labels", ()))
    if labels and labels != tuple(dataset.labels):
        theirs = f"the labels {', '.join(dataset.labels)}" if dataset.labels else "no labels (--labels PATTERN)"
        change = f', or change the preset: --set "labels={tuple(dataset.labels)}"' if dataset.labels else ""
        return (
            f"The dataset has {theirs}, preset '{preset.name}' is for {', '.join(labels)}. Prepare recordings of these"
            f"{change}."
        )
    have, need = to_dict(dataset.settings), to_dict(pin_content_encoder(preset, dataset.settings).features)
    have |= {name: None for name in ("mel", "units") if need[name] is None}
    if not (differ := differences(have, need, _SEARCH_RANGE)):
        return None
    return f"The dataset does not fit preset '{preset.name}': {differ}. Prepare it with this preset."


def pin_content_encoder(preset: config.Preset, dataset_settings: Any) -> config.Preset:
    """The preset with the fingerprint of the content encoder that extracted the dataset's features."""
    target, have = preset.features.units, getattr(dataset_settings, "units", None)
    if target is None or target.fingerprint or not target.same_but_for_fingerprint(have):
        return preset
    features = dataclasses.replace(preset.features, units=have)
    return dataclasses.replace(preset, features=features, text=preset.text.replace(target.source, have.source))


def preset_of_session(preset: config.Preset, dataset: Any, steps: int | None, seed: int | None) -> config.Preset:
    """The preset with the steps and seed that were asked for, and the content encoder of the dataset."""
    changes = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    preset = dataclasses.replace(preset, training=dataclasses.replace(preset.training, **changes))
    return pin_content_encoder(preset, dataset.settings)


def _with_excitation_of_run(preset: config.Preset, record: dict, messages: list[str]) -> config.Preset:
    """The preset with a vocoder of sines for a run that was begun when presets had no pulses."""
    model = preset.model
    own = model if model.kind == "harmonic" else getattr(model, "vocoder", None)
    then = record["preset"]["model"] if own is model else record["preset"]["model"].get("vocoder")
    if not then or own is None or (then.get("excitation", "sines"), own.excitation) != ("sines", "pulses"):
        return preset
    messages.append("The vocoder of this run was begun with sines and keeps them; new runs of the preset have pulses.")
    sines = dataclasses.replace(own, excitation="sines")
    text = f"{preset.text}\nvocoders.HarmonicSettings.excitation = 'sines'\n"
    return dataclasses.replace(
        preset, model=sines if own is model else dataclasses.replace(model, vocoder=sines), text=text
    )


def differences(old: dict, new: dict, ignored: Collection[str] = ()) -> str:
    """``n_harmonics 100 there, 60 here; ...`` or an empty string."""
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k) and k not in ignored]
    return "; ".join(f"{k} {old.get(k)} there, {new.get(k)} here" for k in keys)


def _require_new(run: Path, identity: dict, from_step: int | None) -> None:
    """Refuse to begin a new run where log or run.json know of checkpoints."""
    saved = [e["step"] for e in run_log.LogReader(run).events if e["event"] == "saved"]
    if saved := saved or identity.get("first_saved"):
        why = f"its log says that step {saved[-1]} was saved"
    elif "damaged" in identity:
        why = "its run.json is damaged"
    elif from_step is not None:
        why = f"step {from_step} was asked for"
    else:
        return
    raise TrainingError(
        f"'{run / 'checkpoints'}' shows no checkpoint, but {why}.",
        path=run,
        hint="On Drive, wait until the folder has loaded and try again; or give a new run another folder.",
    )


def changed_settings(record: dict, preset: config.Preset) -> tuple[str, str]:
    """Differences between a checkpoint's settings and a preset: of kind, features and model, and of what may change.

    What may change is training, and the defaults of sampling where they are no part of training.
    """
    then, today = record["preset"], checkpoints.describe_preset(preset)
    if then["kind"] != today["kind"]:
        return f"kind {then['kind']} there, {today['kind']} here", ""
    features, model = (
        to_dict(from_dict(type(getattr(preset, part)), then[part], part)) for part in ("features", "model")
    )
    # A setting that is newer than the checkpoint had its default's effect.
    trained = to_dict(type(preset.training)()) | then["training"]
    is_student = getattr(preset.model, "prediction", "") == "consistency"
    free = instrument.SAMPLING if preset.model.kind == "diffusion" and not is_student else set()
    fixed = [differences(features, today["features"], _SEARCH_RANGE), differences(model, today["model"], free)]
    changed = [differences(trained, today["training"], {"steps"})]
    changed.append(differences(model, today["model"], model.keys() - free))
    return "; ".join(filter(None, fixed)), "; ".join(filter(None, changed))


def _compare(
    run: Path, record: dict, preset: config.Preset, dataset: Any, device: str, allowed: bool, messages
) -> None:
    """Refuse another architecture, other singers or, unless allowed, another dataset; messages on other differences."""
    singers, (fixed, trained) = record["dataset"]["singers"], changed_settings(record, preset)
    if fixed:
        raise TrainingError(f"'{run}' was begun with other settings: {fixed}. Use those to resume, or another folder.")
    if trained:
        messages.append(f"Settings changed since step {record['step']}: {trained}.")
    if preset.model.kind == "diffusion" and singers != list(dataset.singers):  # its singer table goes by position
        raise TrainingError(
            f"'{run}' was trained with the singers {', '.join(singers)}, the dataset has {', '.join(dataset.singers)}.",
            hint="Export the run, then begin a new one from that instrument (--init NAME.zip): it matches the names.",
        )
    if record["dataset"]["fingerprint"] != dataset.fingerprint:
        old, new = record["dataset"]["recordings"], checkpoints.recording_hashes(dataset)
        changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
        changes = f"{len(new.keys() - old)} recordings added, {len(old.keys() - new)} removed, {changed} changed"
        if old == new:
            changes = "the recordings are the same, but not their split, singers or segments"
        text = f"The dataset changed since step {record['step']}: {changes}."
        if not allowed:
            how = "--allow-changed-dataset, in Python allow_changed_dataset=True, in notebook 02 ALLOW_CHANGED_DATASET"
            other = run.with_name(f"{run.name} 2")
            hint = f"Resume with it ({how}), or begin a new run, for example '{other}'."
            raise TrainingError(text, path=run, hint=hint)
        messages.append(f"{text} Going on with it, as asked.")
    if record["device"] != device or record["versions"] != checkpoints.new_record("", 0, preset, dataset)["versions"]:
        messages.append("Another device or version than last time: the result is as good, but not bit-identical.")


def _newest(run: Path, run_id: str | None, from_step: int | None) -> tuple[Checkpoint | None, list[str]]:
    """``checkpoints.newest``, retried once if a file on Drive could not be used: its errors are often temporary."""
    found, unused = newest(run / "checkpoints", run_id, from_step)
    if found is not None and unused and filesystem.on_drive(run):
        time.sleep(RETRY_AFTER_S)
        with contextlib.suppress(OSError, TrainingError):
            again, still_unused = newest(run / "checkpoints", run_id, from_step)
            if again is not None and again.order >= found.order:
                return again, still_unused
    return found, unused
