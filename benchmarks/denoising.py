"""Zero-shot denoising by a DiffWave trained on clean digits: gain in SI-SDR by kind of noise, share and reading.

    OMP_NUM_THREADS=1 python benchmarks/denoising.py MODEL.zip DATA [--clips 20] [--step 25] [--json FILE]

DATA is a folder of ``{label}_{singer}_{take}.wav``; takes 0 to 4, which training held out, are denoised, a fixed choice
spread over all of them. Babble is made of other held-out recordings of other speakers. A share is of the clean
recording's root mean square: 10 % is 20 dB, 30 % is 10.5 dB before (see ``lib/noises.py``). A step whose noise is far
above that of the recording makes the model invent; ``--step`` may be given several times to see it.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch

from lib import noises
from svclib.audio import io as audio
from svclib.conversion import diffwave_files
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses

HELD_OUT = re.compile(r"(?P<label>[^_]+)_(?P<singer>[^_]+)_[0-4]\.wav")


def held_out(folder: Path, rate_hz: int) -> list[dict]:
    """Label, singer and samples of every held-out recording, by name."""
    found = [(p, HELD_OUT.fullmatch(p.name)) for p in sorted(folder.glob("*.wav"))]
    return [{"name": p.name, **m.groupdict(), "audio": audio.read(p, rate_hz).samples} for p, m in found if m]


def gains(opened, clips: list[dict], count: int, t: int = 25, seed: int = 0, say=print) -> list[dict]:
    """Rows ``step, kind, share, reading, before_db, gain_db, spread_db``, over the clips."""
    picked = [clips[i] for i in np.unique(np.linspace(0, len(clips) - 1, min(count, len(clips))).astype(int))]
    rows = []
    for kind in noises.KINDS:
        for share in noises.SHARES:
            noisy = []
            for i, clip in enumerate(picked):
                others = [c["audio"] for c in clips if c["singer"] != clip["singer"]] if kind == "babble" else ()
                made = noises.make(kind, len(clip["audio"]), opened.features.sample_rate_hz, seed + i, others)
                noisy.append(noises.mix(clip["audio"], made, share))
            before = [noises.si_sdr_db(c["audio"], x) for c, x in zip(picked, noisy, strict=True)]
            for reading in diffwave_uses.READINGS:
                after = []
                for i, (clip, x) in enumerate(zip(picked, noisy, strict=True)):
                    label = clip["label"] if opened.model.settings.condition == "label" else None
                    cleaned = diffwave_uses.denoise(opened.model, x, t, reading, label, SamplingOptions(seed=seed + i))
                    after.append(noises.si_sdr_db(clip["audio"], cleaned))
                gain = np.subtract(after, before)
                rows.append(
                    {
                        "step": t,
                        "kind": kind,
                        "share": share,
                        "reading": reading,
                        "clips": len(picked),
                        "before_db": float(np.mean(before)),
                        "gain_db": float(gain.mean()),
                        "spread_db": float(gain.std()),
                    }
                )
                row = (f"{t}", kind, f"{share:.0%}", reading, f"{np.mean(before):.1f}", f"{gain.mean():+.1f}")
                say(f"| {' | '.join(row)} | {gain.std():.1f} |")
    return rows


def main() -> None:
    """Print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a DiffWave trained without a mel")
    parser.add_argument("data", type=Path, help="folder of digits")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--step", type=int, action="append", help="repeat for more (default: 25, the paper's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    opened = diffwave_files.load_model(chosen.model)
    clips = held_out(chosen.data, opened.features.sample_rate_hz)
    if not clips:
        parser.error(f"there is no {{label}}_{{singer}}_0.wav to _4.wav in '{chosen.data}'")
    print("| step | noise | share | reading | SI-SDR before, dB | gain, dB | its spread, dB |\n" + "|---" * 7 + "|")
    rows = [row for t in chosen.step or [25] for row in gains(opened, clips, chosen.clips, t, chosen.seed)]
    if chosen.json:
        report = {"model": opened.name, "sha256": opened.sha256, "seed": chosen.seed, "rows": rows}
        chosen.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
