"""Truths: closed forms of quantile mapping, tuning and autotune on made-up notes; librosa's tuning estimate; the octave
rule by hand; and the ways in which loudness and pitch controls of timbre transfer go wrong elsewhere (each named)."""

import dataclasses

import numpy as np
import pytest

from svclib.audio import units
from svclib.conversion import autotune, controls, key_suggestion
from svclib.conversion.controls import Controls, adjust
from svclib.features.extract import Features, FeatureSettings
from svclib.utils.errors import ConfigError
from svclib.utils.serialization import control_specs

SETTINGS = FeatureSettings()


def song(midi, loudness_db=-20.0, confidence=1.0, voiced=None):
    """Features with the given pitch; MIDI 0 means unvoiced."""
    midi = np.asarray(midi, dtype=float)
    voiced = midi > 0 if voiced is None else np.asarray(voiced, dtype=bool)
    n = len(midi)
    f0 = np.where(midi > 0, units.midi_to_hz(midi), 0.0).astype(np.float32)
    full = {"confidence": np.broadcast_to(confidence, n) * voiced, "loudness_db": np.broadcast_to(loudness_db, n)}
    full = {k: np.array(v, dtype=np.float32) for k, v in full.items()}
    return Features(SETTINGS, n * SETTINGS.hop_samples, f0_hz=f0, voiced=voiced, **full)


def statistics(mean_midi=69.0, std_midi=3.0, loudness=(-50.0, 10.0), seed=0):
    """What a dataset says of an instrument whose notes and levels are normally distributed."""
    rng = np.random.default_rng(seed)
    notes = rng.normal(mean_midi, std_midi, 20000)
    edges = np.arange(0.0, 128.5, 0.5)
    seconds = np.histogram(notes, edges)[0] * 0.004
    levels = np.maximum(rng.normal(*loudness, 20000), -80)
    return {
        "f0_midi": {
            "mean_note": float(notes.mean()),
            "histogram": {"edges_midi": edges.tolist(), "seconds": seconds.tolist()},
        },
        "loudness_db": {"mean_note": float(levels.mean()), "max": float(levels.max())},
        "loudness_quantiles_db": np.quantile(levels, np.linspace(0, 1, 1000)).tolist(),
    }


NUMBERS = {spec.name: spec for spec in control_specs(Controls) if spec.low is not None}


# Controls -------------------------------------------------------------------------------------------------------------


@pytest.mark.case("P35")
def test_keys_and_presets():
    assert len(autotune.KEYS) == 2 + 12 + 12
    for name in controls.PRESETS:
        assert isinstance(controls.preset(name), Controls)


@pytest.mark.parametrize("name", list(NUMBERS))
@pytest.mark.parametrize("beyond", [-1, 1, float("nan"), True])
def test_values_out_of_range_are_refused_with_the_range(name, beyond):
    low, high = NUMBERS[name].low, NUMBERS[name].high
    value = {-1: low - 0.1, 1: high + 0.1}.get(beyond, beyond) if not isinstance(beyond, bool) else beyond
    with pytest.raises(ConfigError, match=f"{name}.*{low:g} to {high:g}"):
        Controls(**{name: value})


def test_other_values_are_refused():
    with pytest.raises(ConfigError, match="whole"):
        Controls(octave_shift=0.5)
    with pytest.raises(ConfigError, match="no key"):
        Controls(autotune_key="H major")
    assert Controls(autotune_key="Bb minor").autotune_key == "A# minor"
    assert Controls(octave_shift=-1, semitone_shift=5).pitch_shift_semitones == -7


# Loudness -------------------------------------------------------------------------------------------------------------


def test_quantile_mapping_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    source, target = rng.normal(-30, 5, 20000), rng.normal(-50, 10, 20000)
    moved = controls.quantile_transform(
        source, controls.loudness_quantiles(source), controls.loudness_quantiles(target)
    )
    assert moved.mean() == pytest.approx(target.mean(), abs=0.05) and moved.mean() == pytest.approx(-49.92, abs=0.2)
    assert moved.std() == pytest.approx(target.std(), abs=0.05) and moved.std() == pytest.approx(9.98, abs=0.15)
    distance = np.abs(moved - (-50 + (source + 30) * 2))  # the closed form for two normals
    assert np.median(distance) < 0.2 and np.quantile(distance, 0.99) < 1.5


@pytest.mark.parametrize("n", [1, 7, 1000, 30000])
def test_mapping_onto_itself_changes_nothing(n):
    x = np.random.default_rng(n).normal(-30, 5, n)
    q = controls.loudness_quantiles(x)
    assert len(q) == min(n, 1000)
    assert np.abs(controls.quantile_transform(x, q, q) - x).max() <= (
        1e-13 if n <= 1000 else 2e-13
    )  # rounding of the steep tail


def test_mapping_rises_and_is_continuous_far_beyond_what_was_fitted():
    rng = np.random.default_rng(1)
    target = controls.loudness_quantiles(rng.normal(-45, 8, 5000))
    for loc, scale in ((-30, 5), (-60, 3), (-20, 0.5)):
        source = controls.loudness_quantiles(rng.normal(loc, scale, 5000))
        x = np.linspace(-80, 20, 200001)
        y = controls.quantile_transform(x, source, target)
        assert (np.diff(y) >= -1e-12).all()
        rank_steps = (np.diff(target).max() / np.maximum(np.diff(source), 1e-9)).max()
        assert np.diff(y).max() <= 0.0005 * max(rank_steps, 2.0) + 1e-9
        assert y[0] <= -80 + 1e-9  # silence stays silent
        above = x > source[-1]
        np.testing.assert_allclose(np.diff(y[above]), np.diff(x[above]), atol=1e-9)


def test_below_the_notes_the_curve_runs_parallel_or_meets_silence():
    target = np.linspace(-30.0, -20.0, 1000)
    loud = controls.quantile_transform(np.array([-15.0, -40.0, -80.0]), np.linspace(-10.0, 0.0, 500), target)
    np.testing.assert_allclose(loud, [-35.0, -60.0, -100.0], atol=1e-9)  # 20 dB quieter than the song, everywhere
    quiet = controls.quantile_transform(np.array([-70.0, -75.0, -80.0]), np.linspace(-70.0, -60.0, 500), target)
    np.testing.assert_allclose(quiet, [-30.0, -55.0, -80.0], atol=1e-9)  # parallel, silence would sound at -40 dB


def test_a_repeated_level_has_the_middle_of_its_ranks():
    source = controls.loudness_quantiles(np.full(500, -33.0))
    target = np.linspace(-60.0, -20.0, 1000)
    assert controls.quantile_transform(np.array([-33.0]), source, target)[0] == pytest.approx(-40.0, abs=1e-9)


@pytest.mark.case("P30")
@pytest.mark.parametrize("threshold", [0.5, 1.0, 1.5, 2.0])
def test_attenuation_is_never_a_boost(threshold):
    ratio = np.linspace(0, 2.1, 1000)
    down = controls.attenuation_db(ratio, threshold, 20.0)
    assert down.min() == 0 and down.max() == 20.0
    assert (down[ratio >= threshold] == 0).all()
    assert np.abs(np.diff(down)).max() < 20 / threshold * 0.0022  # no step at the mask's edge
    if threshold == 1.0:
        np.testing.assert_allclose(down, 20 * np.clip(1 - ratio, 0, None))
    assert controls.attenuation_db(np.array([1.5]), 2.0, 20.0)[0] == pytest.approx(5.0)  # elsewhere: 10 dB louder


def swell(n=4000):
    """A note that swells from silence and fades again, twice."""
    level = -70 + 50 * np.sin(np.linspace(0, 2 * np.pi, n)) ** 2
    return song(np.full(n, 60.0), loudness_db=level)


@pytest.mark.case("P31")
@pytest.mark.parametrize("use", [True, False])
@pytest.mark.parametrize("threshold", [0.8, 1.0, 1.7])
def test_no_level_jump_at_the_edges_of_the_mask(threshold, use):
    adjusted = adjust(swell(), statistics(), Controls(use_loudness_statistics=use, mask_threshold=threshold))
    edges = np.flatnonzero(np.diff(adjusted.mask.astype(int)))
    assert len(edges) >= 3
    steps = np.abs(np.diff(adjusted.loudness_db.astype(float)))
    assert steps[edges].max() < 0.5  # the song itself moves by up to 0.08 dB a frame; unmapped neighbours gave over 10
    assert steps.max() < 2.5


def test_notes_get_the_loudness_of_the_instrument():
    adjusted = adjust(swell(), statistics(loudness=(-40.0, 4.0)), Controls())
    notes = adjusted.loudness_db[adjusted.mask]
    assert notes.mean() == pytest.approx(-40, abs=0.3) and notes.std() == pytest.approx(4, abs=0.2)
    assert adjusted.loudness_db[~adjusted.mask].mean() < notes.min()
    assert adjusted.loudness_db.min() >= -80


def test_loudness_shift_and_switch():
    unchanged = {"use_loudness_statistics": False, "mask_threshold": 0.0, "attenuation_db": 0.0}
    plain = adjust(swell(), statistics(), Controls(**unchanged))
    np.testing.assert_allclose(plain.loudness_db, swell().loudness_db, atol=1e-5)
    louder = adjust(swell(), statistics(), Controls(**unchanged, loudness_shift_db=7))
    np.testing.assert_allclose(louder.loudness_db - plain.loudness_db, 7, atol=1e-5)


def test_digital_silence_stays_silent_even_where_every_frame_is_a_note():
    level = np.where(np.arange(1000) < 500, -80.0, -25.0 + np.sin(np.arange(1000)))
    adjusted = adjust(song(np.full(1000, 60.0), loudness_db=level), statistics(), Controls(mask_threshold=0.0))
    assert adjusted.mask.all() and (adjusted.loudness_db[:500] == -80).all()


def test_asking_for_more_than_the_instrument_ever_sang_is_told():
    adjusted = adjust(swell(), statistics(), Controls(loudness_shift_db=30))
    assert any("loudest" in w for w in adjusted.warnings)


# Nothing there --------------------------------------------------------------------------------------------------------


@pytest.mark.case("P29")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("stats", [None, {}, statistics()])
def test_songs_without_notes_or_pitch_give_a_defined_result_and_a_warning(stats):
    knobs = Controls(mask_threshold=2.0, autotune=1.0, autotune_key="auto", octave_shift=1)
    silent = song(np.zeros(300), loudness_db=-80.0)
    noise = song(np.zeros(300), loudness_db=-20.0)
    mumbled = song(np.full(300, 60.0), loudness_db=-20.0, confidence=0.2)
    for s, words in ((silent, "No pitch"), (noise, "No pitch"), (mumbled, "counts as a note")):
        adjusted = adjust(s, stats, knobs)
        assert any(words in w for w in adjusted.warnings)
        for array in (adjusted.f0_hz, adjusted.loudness_db, adjusted.note_on_ratio):
            assert np.isfinite(array).all() and len(array) == 300
        assert not adjusted.mask.any() and adjusted.song_mean_midi is None
    assert (adjust(silent, stats, knobs).f0_hz == 0).all()
    assert key_suggestion.suggest_shift(silent, stats).octaves == 0
    assert "No shift" in key_suggestion.suggest_shift(noise, stats).text


def test_an_instrument_without_statistics_is_told():
    adjusted = adjust(swell(), None, Controls())
    assert any("no loudness statistics" in w for w in adjusted.warnings) and adjusted.instrument_mean_midi is None
    expected = swell().loudness_db - controls.attenuation_db(adjusted.note_on_ratio, 1.0, 20.0)
    np.testing.assert_allclose(adjusted.loudness_db, np.maximum(expected, -80), atol=1e-4)


def test_too_little_to_measure_loudness_by_is_told():
    level = np.full(2000, -70.0)
    level[1000:1050] = -20
    adjusted = adjust(song(np.full(2000, 60.0), loudness_db=level), statistics(), Controls(mask_threshold=2.0))
    assert 0 < adjusted.mask.sum() < 125 and any("too little" in w for w in adjusted.warnings)


# Tuning and autotune --------------------------------------------------------------------------------------------------


def notes_sharp_by(cents, jitter_cents=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return np.repeat(rng.integers(52, 72, 30), 40) + cents / 100 + rng.normal(0, jitter_cents / 100, 1200)


def test_tuning_of_notes_30_cents_sharp():
    midi = notes_sharp_by(30)
    assert autotune.tuning_offset(midi, np.ones(1200)) == pytest.approx(0.30, abs=1e-9)


@pytest.mark.parametrize("cents", [-47, -30, -10, 0, 12, 25, 49])
def test_tuning_agrees_with_librosa(cents):
    import librosa

    midi = notes_sharp_by(cents, seed=cents + 50)
    ours = autotune.tuning_offset(midi, np.ones(len(midi)))
    theirs = librosa.pitch_tuning(units.midi_to_hz(midi), resolution=0.01)
    assert abs((ours - theirs + 0.5) % 1 - 0.5) <= 0.02  # half a semitone sharp is half a semitone flat


@pytest.mark.case("P32")
@pytest.mark.parametrize("midi", [60.0, 60.3, 59.8, 60.123, 47.499, 60.5])
def test_tuning_of_a_constant_pitch_is_its_true_offset(midi):
    offset = autotune.tuning_offset(np.full(500, midi), np.ones(500))
    true = midi - round(midi)
    assert abs((offset - true + 0.5) % 1 - 0.5) <= 0.01


@pytest.mark.case("P32")
def test_tuning_of_nothing_is_zero():
    assert autotune.tuning_offset(np.zeros(0), np.zeros(0)) == 0
    assert autotune.tuning_offset(np.full(9, 60.3), np.zeros(9)) == 0


def test_autotune_all_the_way_puts_every_voiced_pitch_on_the_detuned_grid():
    midi = np.random.default_rng(0).uniform(30, 90, 5000)
    tuned = autotune.autotune(midi, np.ones(5000, dtype=bool), 1.0, 0.3)
    off = tuned - 0.3
    assert np.abs(off - np.round(off)).max() < 1e-12 and np.abs(tuned - midi).max() <= 0.5 + 1e-12


def test_autotune_in_a_key_moves_to_the_nearest_note_of_it():
    midi = np.random.default_rng(1).uniform(30, 90, 5000)
    tuned = autotune.autotune(midi, np.ones(5000, dtype=bool), 1.0, -0.2, "D minor")
    classes = set(np.round(tuned + 0.2).astype(int) % 12)
    assert classes == {2, 4, 5, 7, 9, 10, 0}  # D E F G A Bb C
    every = np.array([n for n in range(20, 100) if n % 12 in classes]) - 0.2
    np.testing.assert_allclose(np.abs(tuned - midi), np.abs(midi[:, None] - every).min(axis=1), atol=1e-12)


def test_autotune_by_halves_goes_half_way_and_leaves_unvoiced_frames_alone():
    midi = np.array([60.4, 0.0, 61.8, 55.3])
    voiced = np.array([True, False, True, False])
    np.testing.assert_allclose(autotune.autotune(midi, voiced, 0.5), [60.2, 0.0, 61.9, 55.3], atol=1e-12)
    np.testing.assert_array_equal(autotune.autotune(midi, voiced, 0.0), midi)


def test_autotune_of_a_song():
    s = song(np.where(np.arange(1200) % 40 < 5, 0, notes_sharp_by(30)))
    adjusted = adjust(s, None, Controls(autotune=1.0))
    assert adjusted.tuning_semitones == pytest.approx(0.30, abs=0.011)
    off = units.hz_to_midi(adjusted.f0_hz[adjusted.voiced].astype(float)) - adjusted.tuning_semitones
    assert np.abs(off - np.round(off)).max() < 1e-4
    np.testing.assert_array_equal(adjusted.voiced, s.voiced)
    assert adjusted.f0_hz.min() > 100  # unvoiced gaps hold the pitch around them; none falls to a few Hz
    assert np.isnan(adjusted.autotuned_midi[~s.voiced]).all()


def test_estimates_in_unvoiced_frames_count_for_nothing():
    """Trackers guess a pitch for noise too: neither the tuning nor the mean pitch may follow it."""
    s = song(np.where(np.arange(1000) < 400, 60.3, 40.8), voiced=np.arange(1000) < 400)
    s = dataclasses.replace(s, confidence=np.ones(1000, np.float32))
    adjusted = adjust(s, statistics(), Controls(autotune=1.0))
    assert adjusted.mask.all() and adjusted.tuning_semitones == pytest.approx(0.30, abs=0.011)
    assert adjusted.song_mean_midi == pytest.approx(60.3, abs=1e-3)
    assert adjusted.instrument_mean_midi == pytest.approx(69, abs=0.1)
    assert units.hz_to_midi(adjusted.f0_hz.astype(float)).min() == pytest.approx(60.3, abs=0.011)


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("mode", ["major", "minor"])
def test_key_of_a_scale_with_its_tonic_triad_stressed(tonic, mode):
    third = 4 if mode == "major" else 3
    scale = [0, 2, 4, 5, 7, 9, 11] if mode == "major" else [0, 2, 3, 5, 7, 8, 10]
    notes = np.array([*scale, 0, 0, third, 7, 7, 12]) + 60 + tonic + 0.2
    assert autotune.suggest_key(notes, np.ones(len(notes)), 0.2) == f"{autotune.NOTE_NAMES[tonic]} {mode}"


def test_the_best_key_is_chosen_when_asked():
    notes = np.repeat([62, 64, 66, 67, 69, 71, 73, 74, 69, 66, 62, 62], 60)  # D major
    adjusted = adjust(song(notes), None, Controls(autotune=1.0, autotune_key="auto"))
    assert adjusted.key == "D major"
    assert autotune.suggest_key(np.zeros(0), np.zeros(0)) == "chromatic"


# Pitch shift ----------------------------------------------------------------------------------------------------------


def test_shift_is_exact_and_gaps_hold_the_pitch():
    midi = np.repeat([60.0, 0.0, 72.0], 100)
    adjusted = adjust(song(midi), None, Controls(octave_shift=1, semitone_shift=-5))
    out = units.hz_to_midi(adjusted.f0_hz.astype(float))
    np.testing.assert_allclose(out[midi > 0] - midi[midi > 0], 7, atol=1e-4)
    assert (np.diff(out[100:200]) >= -1e-6).all() and out[100:200].min() >= 67 and out[100:200].max() <= 79


def test_pitch_is_held_inside_its_limits_and_told():
    adjusted = adjust(song(np.repeat([60.0, 90.0], 100)), None, Controls(octave_shift=3))
    assert adjusted.f0_hz.max() == pytest.approx(4698.636, abs=0.01)
    assert any("50 % of the voiced frames" in w for w in adjusted.warnings)
    low = adjust(song(np.repeat([30.0, 90.0], 100)), None, Controls(octave_shift=-3))
    assert low.f0_hz.min() == pytest.approx(20.0) and low.warnings


@pytest.mark.case("P33")
@pytest.mark.parametrize(
    ("difference", "octaves"),
    [(0, 0), (1, 0), (-1, 0), (5, 0), (7, 1), (17, 1), (19, 2), (-17, -1), (-19, -2), (31, 3), (60, 3)],
)
def test_the_nearest_octave_is_suggested(difference, octaves):
    rng = np.random.default_rng(2)
    s = song(rng.normal(69 - difference, 3, 3000))
    found = key_suggestion.suggest_shift(s, statistics(69.0))
    assert found.octaves == octaves and found.shift_semitones == 12 * octaves
    assert str(f"{octaves:+d}") in found.text
    if abs(difference) <= 36:
        assert 12 * found.octaves + found.semitones == pytest.approx(difference, abs=1)
    bare = {"f0_midi": {"mean_note": 69.0}}  # no histogram: by the mean alone
    assert key_suggestion.suggest_shift(s, bare).octaves == octaves


def test_a_shift_that_was_forgotten_is_told_and_one_that_was_chosen_is_not():
    found = key_suggestion.suggest_shift(song(np.random.default_rng(2).normal(57, 3, 3000)), statistics(69.0))
    assert (found.octaves, found.shift_semitones) == (1, 12)
    said = "This instrument sings the song best at octave +1: press Suggest key."
    assert found.reminder(controls.Controls()) == said
    for chosen in ({"octave_shift": 1}, {"semitone_shift": 7.0}, {"octave_shift": 1, "semitone_shift": 4.0}):
        assert found.reminder(controls.Controls(**chosen)) == "", chosen
    assert found.reminder(controls.Controls(octave_shift=2)) == said
    more = key_suggestion.Suggestion(1, -5, 7, "")
    assert "octave +1 and semitones -5:" in more.reminder(controls.Controls())


def test_the_histograms_decide_where_means_mislead():
    """Most of the song lies where the instrument sings; a long low drone pulls its mean down by an octave."""
    rng = np.random.default_rng(3)
    s = song(np.r_[rng.normal(69, 2, 3000), rng.normal(40, 1, 1500)])
    stats = statistics(69.0, 3.0)
    assert round((69 - np.mean(units.hz_to_midi(s.f0_hz))) / 12) == 1
    assert key_suggestion.suggest_shift(s, stats).octaves == 0


def test_a_diffusion_instrument_takes_semitones_only_where_the_octave_misses_its_range():
    rng = np.random.default_rng(4)
    for difference, shift in ((2, 0), (5, 5), (-6, -6), (14, 12), (17, 17), (-12, -12)):
        s = song(rng.normal(69 - difference, 3, 3000))
        found = key_suggestion.suggest_shift(s, statistics(69.0, 3.0), "diffusion")
        assert found.shift_semitones == pytest.approx(shift, abs=1 if shift % 12 else 0), difference
        assert key_suggestion.suggest_shift(s, statistics(69.0, 3.0)).shift_semitones % 12 == 0
        taken = 12 * found.octaves + found.semitones
        assert found.shift_semitones in (12 * found.octaves, taken)
        if found.shift_semitones % 12:
            assert f"so {taken:+d} semitones are suggested" in found.text
    wide = song(rng.normal(64, 8, 3000))  # a wide song fits nearly as well in its own key
    found = key_suggestion.suggest_shift(wide, statistics(69.0, 8.0), "diffusion")
    assert found.semitones != 0 and found.shift_semitones == 0 and "keeps the key, so it is suggested" in found.text


def levels():
    """Notes of two levels with a breath, a fade and digital silence around them."""
    loudness = np.r_[np.full(100, -40.0), np.full(100, -20.0), np.full(60, -50.0), np.full(100, -80.0)]
    return song(np.r_[np.full(200, 69.0), np.zeros(160)], loudness)


def test_dynamics_between_the_song_and_one_level():
    stats, s = statistics(loudness=(-30.0, 3.0)), levels()
    plain = {"use_loudness_statistics": False, "attenuation_db": 0.0}
    level = stats["loudness_db"]["mean_note"]
    inside = np.r_[20:80, 120:160]
    for follow in (1.0, 0.5, 0.0):
        asked = adjust(s, stats, Controls(**plain, dynamics=follow)).loudness_db
        np.testing.assert_allclose(asked[inside] - level, follow * (s.loudness_db[inside] - level), atol=1e-4)
        assert asked[-60:].max() == -80  # silence stays
        assert asked[230:255].max() < -45  # a breath is not sung like a note
        assert np.abs(np.diff(asked[:260])).max() <= np.abs(np.diff(s.loudness_db[:260])).max() + 1e-6
    own = adjust(s, None, Controls(**plain, dynamics=0.0)).loudness_db[inside]
    assert own.max() - own.min() < 1e-4 and -40 < own.mean() < -20  # without statistics: the song's own mean


def test_breaths_keep_their_level_in_a_diffusion_instrument():
    s = levels()
    stats = {**statistics(), "loudness_quantiles_db": None}
    asked = adjust(s, stats, controls.defaults("diffusion")).loudness_db
    np.testing.assert_array_equal(asked, s.loudness_db)
    assert (adjust(s, stats, controls.defaults("ddsp")).loudness_db - s.loudness_db)[230:255].max() < -5


def test_silence_has_no_gain_and_sound_keeps_it():
    loudness = np.r_[np.full(5, -30.0), np.full(4, -80.0), np.full(3, -79.0)]
    gain = controls.silence_gain(loudness, 12 * 64 + 20, 64)
    assert gain.dtype == np.float32 and len(gain) == 12 * 64 + 20
    centre = 31.5
    assert (gain[: int(4 * 64 + centre)] == 1).all() and (gain[int(9 * 64 + centre) + 1 :] == 1).all()
    assert (gain[int(5 * 64 + centre) + 1 : int(8 * 64 + centre)] == 0).all()
    assert np.abs(np.diff(gain)).max() == pytest.approx(1 / 64, abs=1e-6)
    assert controls.silence_gain(np.full(4, -79.9), 256, 64) is None


def test_adjusting_changes_nothing_of_the_song():
    s = swell()
    before = {f.name: np.copy(getattr(s, f.name)) for f in dataclasses.fields(s) if f.name.endswith(("hz", "db", "d"))}
    adjust(s, statistics(), Controls(autotune=1.0, loudness_shift_db=-3, octave_shift=1))
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(s, name), array)
