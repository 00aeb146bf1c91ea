"""Turn recordings of a voice into an instrument, sing through it, and see how it works.

Modules in reading order; each imports only modules above it (``tests/test_import_order.py`` holds that true):

    ground      colab         the notebooks' first cell; badges from one address
                units         Hz, MIDI, cents; dB; samples, frames, seconds: the frame rule
                progress      callbacks of long work: how far, and whether to stop
                ranges        settings are numbers within what is allowed
                config        gin presets; the only importer of gin
                disk          primitive file operations and the sentences for their failures
                files         looking at files: is it there, what does it hold
                folders       where a person's things lie, local or on Drive
                store         atomic commits, checksums, retention; the only writer of a person's folder
                draws         random numbers of a batch, however it is divided
                layers        step embedding, gated residual blocks, upsampler
    01 prepare  containers    what kind of sound file this is, and what it promises
                decoding      samples block by block, whatever the header claims
                mixing        how channels become one, and what is wrong with them
                audio         mono, resample, write without wrap-around
                zips          recordings unpacked: nothing outside the folder, nothing overwritten
                sources       recordings from folders, zips, links
                pitch         trackers of F0, and how they come onto the frame grid
                crepe         the CREPE pitch network
                loudness      A-weighted level; in which frames a note sounds
                mel           log-mel spectrograms as vocoders define them
                contentvec    content units of ContentVec or HuBERT, on the frame grid
                features      log-mel, loudness, F0 and voicing -> Features
                content       speaker-independent content: a pitch-free envelope and its bottleneck
                listening     pitch, pauses, and whether something else sounds beside the voice
                diagnosis     what measurements mean: findings with what to do
                doctor        what is wrong with a recording, and what to do
                corpus        which recordings: singers and labels from names, a held-out part
                shards        the few large files a dataset consists of
                segments      a recording as a stream, cut and measured piece by piece
                statistics    what an instrument knows about the voice it was made from
                manifest      what a dataset holds and how it was measured
                cluster       segments measured in threads and processes here, or by a dask cluster
                preparing     from recordings to shards and manifest; interrupted, it goes on
                remeasuring   the same from the audio that a dataset stores
                dataset       prepare, open, random access, batches
    02 train    synthesis     harmonic oscillators, filtered noise, reverb: plain functions of tensors
                losses        the multi-scale spectral loss
                decoder       dense stacks, the GRU that plays, the encoder that hears what is sung
                ddsp          the singing network and its synthesiser: settings, loss, rendering
                performance   one performance of a score as closed functions of time
                singers       two synthetic singers: data with known truth
                schedule      noise against diffusion time; noise, clean signal and velocity
                samplers      ddpm, ddim, plms, dpm-solver++; SamplerStep
                denoiser      conditions with learned nulls, the mel denoiser, long songs in pieces
                griffinlim    a log-mel made audible without a network
                vocoders      the vocoder protocol; a mel sung over harmonics and noise
                nsf_hifigan   the community's vocoder
                nsf_weights   its weights, read from a person's own file
                diffusion_settings   what defines a diffusion model
                diffusion     its model: training, singing, coarse mel
                diffwave_process  DiffWave's walks: every trained step, or a few aligned ones
                diffwave_layer    one gated layer in tiles, forward and backward, for training on a CPU
                diffwave_net  its network: BASE, LARGE, with a mel, a label or nothing
                diffwave_source   the pitch a vocoder hears besides the mel
                diffwave_fast     the network asked many times: folded, in tiles, in pieces
                diffwave      settings and model of waveform diffusion, training
                diffwave_uses     vocode, generate, denoise, interpolate
                diffwave_weights  weights of the public diffwave package
                noises        five noises made in code, mixed at a share of a level; SI-SDR
                metrics       definitions with units, reference, alignment
                speaker       how much a recording sounds like one person
                evaluation    converted songs against their references
                plain         JSON of a stranger read strictly; settings as plain JSON and back
                sealed        the zip of a stranger and the weights in it: nothing run or believed
                instrument    the shareable file: save, open, refuse
                checkpoint_file   all that a run needs to go on exactly, in one verified file
                checkpoints   a run's: kept, found, pruned; a broken one means the one before it
                classifier_net    names short clips: from a log-mel picture to 64 numbers to labels
                classifier    a small listener for spoken digits: clips, training, what it hears
                generation    how far made sounds are from real ones, as sets
                lease         who is training a run: two machines notice each other
                keeping       the run's folder, or this machine while that cannot be written
                runlog        curves, previews to listen to, TensorBoard
                machine       device and precision, batches in pieces, requests to stop
                validation    what was learnt, on what is held out: a loss, a few pieces to listen to
                resume        which checkpoint to go on from, and what forbids it
                trainer       one session: a step, a look at what was learnt, keeping it
                training      settings, the loop on one screen, export
                sweep         a grid of trainings and its table
    03 convert  tuning        notes, keys, tuning, autotune
                controls      what a person asks for, and what becomes of pitch and loudness
                suggestion    which shift brings a song into an instrument's range
                octaves       where a pitch tracker jumped an octave that nobody sang
                songs         found, read, measured and remembered
                vocoding      any vocoder behind one door, alone or for an instrument
                copysynthesis     how close a vocoder comes to recordings; whether it buzzes
                renderers     how each kind of instrument is asked to sing
                conversion    song -> adjust -> model -> audio -> file
                wave_files    sounds that DiffWave generated, denoised or mixed, as files
                batch         many songs in one go
                ways          one clip sung in several ways, with time and metrics
    04 see      page          players, pictures, notices, tables as HTML; the only place where text becomes markup
                selection     which steps of a walk to show
                trace         what happened at every step, kept and read again
                capture       watching a sampler and the layers of its network
                projection    maps of hidden features; curves over the steps
                waves         a waveform trace as pictures
                stepsounds    what the steps sound like, and their pitch
                player        traces as one page to scrub and listen (player.html)
                views         what pictures show, computed
                plots         pictures; only plots* import matplotlib
                plots_inside  what a DDSP instrument plays, drawn
                stretches     a stretch of a song, and changes of one factor of it
                study         runs from the same noise; the influence of each factor
                comparison    runs and steps compared: matrices, maps, curves; tables as files
                step_metrics  metrics of every step, with unit, reference and frame count
                plots_study   the pictures of a study
                study_views   each view of a study: picture, table, what it shows
                live          a walk while it goes on, in pictures drawn in milliseconds
                results       a conversion as a piece of a page
                lesson_pages  the eight pages of the lesson in words
                lesson_wave   DiffWave watched
                lesson        a song's lesson: material, size, one page (lesson.html)
                start         what is made where a person's folder is still empty
                inspection    what a trained model does, as arrays; runs compared
                widgets       what panels share; only widgets* import ipywidgets, and do no arithmetic
                widgets_record    a microphone for notebooks
                widgets_prepare   the panels of notebook 01
                widgets_train     the panels of notebook 02
                widgets_knobs     the controls that every instrument has
                widgets_diffusion  what only a diffusion instrument can be asked
                widgets_compare   the A/B table of notebook 03
                widgets_convert   the panel of notebook 03
                widgets_see       the panels of notebook 04
                widgets_study_parts   what a study sings, how, and what it changes: the controls
                widgets_study_look    looking at its runs: views, steps to listen to, files
                widgets_study     the study panel: runs, ablations, comparisons
                widgets_lesson    its lesson: the example, one's own, DiffWave's
                showcase      one page about a conversion: listen, look, what the numbers mean
                demo          the whole journey on the synthetic singers
    door        commands      what each command does
                commands_convert  songs sung by an instrument
                commands_wave     what is done to waves alone: vocode, generate, denoise, interpolate
                commands_see      what shows a model at work: trace
                __main__      the svclib command

Importing ``svclib`` itself loads nothing: ``from svclib import features`` loads what that module needs.
"""

import os

__version__ = "0.1.0"

# onnxruntime (from 1.29 on) reports to its maker what it runs, and huggingface_hub who asks, unless this is set before.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_switch, "1")
