"""Truths about pictures: a spectrogram shows a tone at its frequency, level and time; curves are sorted.

And about pages: no text from outside becomes markup, and embedded sound keeps its length.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.conversion.controls import ConditioningTracks, Controls
from svclib.data.quality_report import FileReport, Finding, Report
from svclib.features.extract import Features, FeatureSettings

RATE_HZ = 16000
NASTY = "<script>alert(1)</script> & \"quotes\" 'x' $a_b$ \N{MUSICAL NOTE}"


def _features(n_frames=500, f0_hz=440.0):
    settings = FeatureSettings()
    voiced = np.arange(n_frames) % 100 < 70
    return Features(
        settings,
        n_frames * settings.hop_samples,
        np.full(n_frames, f0_hz, np.float32),
        voiced,
        np.where(voiced, 0.9, 0.1).astype(np.float32),
        np.where(voiced, -20.0, -80.0).astype(np.float32),
    )


@pytest.mark.parametrize("tone_hz", [110.0, 440.0, 3000.0, 7000.0])
def test_spectrogram_shows_a_sine_at_its_frequency_and_level(tone_hz):
    t = np.arange(RATE_HZ) / RATE_HZ
    level_db, frequency_hz, _ = plots.log_spectrogram(0.5 * np.sin(2 * np.pi * tone_hz * t), RATE_HZ)
    middle = level_db[:, level_db.shape[1] // 2]
    assert abs(np.log2(frequency_hz[middle.argmax()] / tone_hz)) < 0.08
    assert middle.max() == pytest.approx(-6.02, abs=1.5)  # Hann scalloping is at most 1.42 dB
    assert level_db.min() >= plots.FLOOR_DB


@pytest.mark.parametrize("n_samples", [1, 500, 16000, 60 * 16000])
def test_spectrogram_shows_a_click_at_its_time_whatever_the_length(n_samples):
    samples = np.zeros(n_samples)
    at = int(0.6 * n_samples)
    samples[at] = 1.0
    level_db, _, time_s = plots.log_spectrogram(samples, RATE_HZ)
    column_s = time_s[1] - time_s[0]
    assert level_db.shape[1] <= 1210
    assert abs(time_s[level_db.sum(axis=0).argmax()] - at / RATE_HZ) <= column_s


@pytest.mark.case("P47")
def test_curves_are_sorted_by_step_without_gaps_in_the_data():
    curves = {"step": [300, 100, 200], "loss": [3.0, 1.0, np.nan]}
    curves |= {"validation_step": [20, 10], "validation_loss": [2, 1]}
    step, loss = plots.sorted_curve(curves, "loss")
    assert step.tolist() == [100, 300] and loss.tolist() == [1.0, 3.0]
    assert plots.sorted_curve(curves, "validation_loss")[0].tolist() == [10, 20]


@pytest.mark.case("P49")
def test_z_map_shows_the_plane_that_points_lie_in():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((16, 2)))[0].T
    points = rng.standard_normal((400, 2)) * [5.0, 1.0] @ basis + 3.0
    axis = plots.z_map({"a": points}).axes[0]
    flat = axis.lines[0].get_xydata()
    assert float(axis.get_xlabel().split("(")[1].split("%")[0]) > 90
    a, b = points[:50], flat[:50]
    assert np.allclose(np.linalg.norm(a[:, None] - a, axis=-1), np.linalg.norm(b[:, None] - b, axis=-1))


def test_compared_runs_are_ordered_by_their_last_value_with_its_step():
    runs = {
        "late": {"validation_step": [20, 10], "validation_loss": [4.0, 9.0]},
        "best": {"validation_step": [10, 30], "validation_loss": [8.0, 3.5]},
        "none": {"validation_step": [], "validation_loss": []},
    }
    labels = [t.get_text() for t in plots.compare_runs(runs).axes[0].get_legend().get_texts()]
    assert labels == ["best: 3.500 at step 30", "late: 4.000 at step 20", "none: no value yet"]


@pytest.mark.case("P12")
def test_time_axes_come_from_the_rate_of_the_features():
    measured = _features(500)  # 500 frames of 64 samples at 16 kHz: 2 s
    figure = plots.features_overview(np.zeros(measured.n_samples), measured, start_s=3.0)
    assert figure.axes[2].get_xlim() == pytest.approx((3.0, 5.0))
    line = figure.axes[2].lines[0].get_xdata()
    assert line[0] == pytest.approx(3.002) and line[-1] == pytest.approx(4.998)


def _tracks(measured, voiced=None):
    n = len(measured.f0_hz)
    return ConditioningTracks(
        measured.f0_hz * 2,
        measured.voiced if voiced is None else voiced,
        measured.loudness_db,
        measured.voiced,
        np.ones(n, np.float32),
        np.full(n, 69.0),
        0.0,
        "chromatic",
        None if voiced is not None else 69.0,
        70.0,
        (),
    )


def test_conversion_plots_show_loudness_pitch_confidence_and_mask():
    measured = _features()
    figure = plots.conversion_plots(measured, _tracks(measured), Controls(autotune=0.5, mask_threshold=1.3))
    assert len(figure.axes) == 4
    pitch = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    assert np.nanmax(pitch["song"]) == pytest.approx(69.0) and np.nanmax(pitch["target"]) == pytest.approx(81.0)
    assert np.isnan(pitch["song"][~measured.voiced]).all()
    assert figure.axes[3].lines[-1].get_ydata()[0] == 1.3


def test_every_picture_can_be_drawn_from_nothing_sung_and_from_hostile_names():
    silent = _features(40, 0.0)
    nobody = np.zeros(40, bool)
    samples = np.zeros(40 * 64)
    curves = {"step": [], "loss": [], "validation_step": [], "validation_loss": []}
    figures = [
        plots.features_overview(samples, silent),
        plots.compare_spectrograms([(NASTY, samples, RATE_HZ, silent), ("b", samples, 44100, None)]),
        plots.loss_curves(curves, NASTY),
        plots.compare_runs({NASTY: curves}),
        plots.conversion_plots(silent, _tracks(silent, nobody), Controls()),
        plots.harmonics_over_time(np.zeros(40), np.zeros((40, 5)), 0.004),
        plots.noise_over_time(np.zeros((40, 5)), 0.004, RATE_HZ),
        plots.spectrum_at(0.0, np.zeros(5), np.zeros(9), 0.0, RATE_HZ),
        plots.z_map({NASTY: np.zeros((9, 4)), "b": np.ones((3, 4))}),
        plots.z_over_time(np.zeros((9, 4)), 0.004),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        assert plots.png(figure, dpi=40).startswith(b"\x89PNG")


def test_doctor_picture_shows_length_pitch_and_level_of_usable_files():
    bad = FileReport("bad", Path("bad"), findings=(Finding("bad", "unusable", "problem", "no sound"),))
    fine = FileReport(NASTY, Path("a"), 12.0, level_db=-20.0, noise_floor_db=-70.0, f0_low_hz=220.0, f0_high_hz=440.0)
    noisy = Finding("b", "noise", "warning", "record again")
    short = FileReport("b", Path("b"), 3.0, level_db=-30.0, findings=(noisy,))
    figure = plots.doctor_picture(Report([bad, short, fine], {}, []))
    length, pitch, level = figure.axes
    assert [p.get_width() for p in length.patches] == [12.0, 3.0]
    assert [p.get_facecolor() == to_rgba(plots.ORANGE) for p in length.patches] == [False, True]
    assert (pitch.patches[0].get_x(), pitch.patches[0].get_width()) == (pytest.approx(57.0), pytest.approx(12.0))
    assert [line.get_xdata()[0] for line in level.lines] == [-20.0, -30.0]
    assert plots.png(figure, 40) and plots.png(plots.doctor_picture(Report([bad], {}, [])), 40)


def test_no_figure_stays_open_and_no_backend_is_chosen():
    import subprocess
    import sys

    code = "import sys\nfrom svclib.analysis import plots\nassert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_text_from_outside_never_becomes_markup():
    pieces = [
        page.heading(NASTY, NASTY),
        page.notice(NASTY, "error"),
        page.paragraph(NASTY),
        page.table([NASTY, ">n", ""], [[NASTY, 1, None]]),
        page.picture(b"x", NASTY),
        page.player(np.zeros(800, np.float32), RATE_HZ, NASTY, NASTY),
    ]
    for piece in pieces:
        assert "<script" not in piece and "&lt;script&gt;" in piece
        assert 'alt="<' not in piece


@pytest.mark.parametrize("rate_hz, suffix", [(16000, "mpeg"), (44100, "mpeg"), (44056, "wav")])
def test_embedded_sound_keeps_length_and_level(rate_hz, suffix):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate_hz) / rate_hz)
    data, mime = page.encode(np.concatenate([tone, [np.nan, 7.0]]), rate_hz)
    decoded, rate = soundfile.read(io.BytesIO(data))
    assert mime.endswith(suffix) and rate == rate_hz
    assert len(decoded) / rate_hz == pytest.approx(2.0, abs=0.08)  # mp3 adds up to two of its frames
    assert np.sqrt(np.mean(decoded[rate_hz // 2 : rate_hz] ** 2)) == pytest.approx(0.3536, rel=0.02)
    assert np.abs(decoded).max() <= 1.1


def test_download_link_holds_the_file_and_its_name(tmp_path):
    path = tmp_path / 'a "b" <c>.wav'
    path.write_bytes(b"RIFFdata")
    link = page.download_link(path)
    assert "UklGRmRhdGE=" in link and 'download="a &#34;b&#34; &lt;c&gt;.wav"' in link
    assert "0.0 kB" in link
    path.write_bytes(bytes(2345))
    assert "2.3 kB" in page.download_link(path)
    path.write_bytes(bytes(page.LINK_LIMIT_BYTES + 1))
    assert "base64" not in page.download_link(path)
