"""Turn recordings of a voice into an instrument, sing through it, and see how it works.

Modules in reading order; each imports only modules above it (``tests/test_import_order.py`` holds that true):

    ground      units         Hz, MIDI, cents; dB; samples, frames, seconds: the frame rule
                config        gin presets; the only importer of gin
                disk          primitive file operations and the sentences for their failures
                folders       where a person's things lie, local or on Drive
                store         atomic commits, checksums, retention; the only writer of a person's folder
                layers        step embedding, gated residual blocks, upsampler
    01 prepare  containers    what kind of sound file this is, and what it promises
                decoding      samples block by block, whatever the header claims
                audio         mono, resample, write without wrap-around
                sources       recordings from folders, zips, links
                crepe         the CREPE pitch network
                features      log-mel, loudness, F0 and voicing -> Features
                content       speaker-independent content: a pitch-free envelope and its bottleneck
                doctor        what is wrong with a recording, and what to do
                dataset       slicing, cached shards, statistics, random access
    02 train    synthesis     harmonic oscillators, filtered noise, reverb: plain functions of tensors
                decoder       dense stacks, the GRU that plays, the encoder that hears what is sung
                ddsp          the singing network and its synthesiser: settings, loss, rendering
                performance   one performance of a score as closed functions of time
                singers       two synthetic singers: data with known truth
                schedule      noise against diffusion time; noise, clean signal and velocity
                samplers      ddpm, ddim, plms, dpm-solver++; SamplerStep
                diffusion     conditions with learned nulls, mel denoiser, coarse mel
                metrics       definitions with units, reference, alignment
                instrument    the shareable file: save, open, refuse
                training      one-screen loop, checkpoints, exact resume
    03 convert  tuning        notes, keys, tuning, autotune
                controls      what a person asks for, and what becomes of pitch and loudness
                songs         found, read, measured and remembered
                conversion    song -> adjust -> model -> audio -> file
    04 see      plots         the only importer of matplotlib
                widgets       the only importer of ipywidgets
                demo          the whole journey on the synthetic singers
    door        commands      what each command does
                __main__      the svclib command

Importing ``svclib`` itself loads nothing: ``from svclib import features`` loads what that module needs.
"""

__version__ = "0.1.0"
