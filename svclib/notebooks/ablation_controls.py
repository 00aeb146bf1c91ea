"""What a study sings, how, and what it changes: controls by name; what they do is the panel's."""

import ipywidgets as W

from svclib.analysis import interventions
from svclib.models.diffusion import samplers
from svclib.notebooks import base as widgets

CHANGES = (*interventions.CHOICES, "the whole other song", "checkpoints of a training")
OTHER_SONG, CHECKPOINTS = CHANGES[-2:]
_NONE = {"options": [("(none yet)", None)]}


def singing(base) -> dict[str, W.Widget]:
    """What is sung, how, and what is changed."""
    control = widgets.control
    return {
        "instrument": control(W.Dropdown, "Instrument", "t-study-instrument", "diffusion instruments", **_NONE),
        "song": control(W.Dropdown, "Song", "t-study-song", f"recordings in {base.examples}", **_NONE),
        "start_s": control(W.BoundedFloatText, "From (s)", "t-study-start", "where it begins", max=36000.0, step=0.5),
        "seconds": control(
            W.BoundedFloatText,
            "Length (s)",
            "t-study-seconds",
            "how much of it is sung",
            min=0.2,
            max=60.0,
            value=4.0,
            step=0.5,
        ),
        "singer": control(W.Dropdown, "Singer", "t-study-singer", "who sings", **_NONE),
        "sampler": control(
            W.Dropdown,
            "Sampler",
            "t-study-sampler",
            "how the walk goes",
            options=list(samplers.SAMPLERS),
            value="dpmpp",
        ),
        "steps": control(W.BoundedIntText, "Steps", "t-study-steps", "of the walk", min=2, max=1000, value=20),
        "seed": control(
            W.BoundedIntText, "Seed", "t-study-seed", "equal seeds begin with equal noise", min=0, max=2**31 - 1
        ),
        "probe": control(
            W.Checkbox,
            "",
            "t-study-probe",
            "content, melody, timbre: asks the network again at the same noisy mels",
            value=False,
            indent=False,
        ),
        "change": control(W.Dropdown, "Change", "t-study-change", "everything else stays as it is", options=CHANGES),
        "other_song": control(W.Dropdown, "Other song", "t-study-other", "what is taken from elsewhere", **_NONE),
        "other_singer": control(W.Dropdown, "Other singer", "t-study-other-singer", "of this instrument", **_NONE),
        "semitones": control(
            W.BoundedFloatText,
            "Semitones",
            "t-study-semitones",
            "to transpose the melody by",
            min=-24.0,
            max=24.0,
            value=5.0,
        ),
        "strength": control(
            W.BoundedFloatText,
            "Strength",
            "t-study-strength",
            "0 is off, 1 as asked, 2 twice as strongly; twice the time",
            min=-5.0,
            max=10.0,
            value=2.0,
            step=0.25,
        ),
        "run": control(W.Dropdown, "Training", "t-study-training", f"runs in {base.runs}", **_NONE),
        "checkpoints": control(
            W.SelectMultiple, "Steps of it", "t-study-checkpoints", "several with Ctrl", options=[], rows=4
        ),
    }
