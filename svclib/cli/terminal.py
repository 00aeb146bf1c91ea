"""Progress and messages of the command line, on standard error."""

import sys
import time

from svclib.utils.errors import printable

_LINE_EVERY_S = 10.0


class ProgressPrinter:
    """Progress on stderr: a bar with the remaining time on a terminal, else a line about every ten seconds."""

    layout = "{desc} {percentage:3.0f} %|{bar:20}| {elapsed}<{remaining}{postfix}"

    def __init__(self, title: str = ""):
        self.title, self.bar = printable(title), None
        self.started = self.shown_s = time.monotonic()

    def __enter__(self):
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=100.0, desc=self.title, bar_format=self.layout, leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, fraction: float, text: str = "") -> None:
        """Show how far it is (0 to 1) and what is being done; 0 starts the clock anew."""
        now = time.monotonic()
        if fraction == 0:
            self.started = now
            if self.bar is not None:
                self.bar.reset()
        if self.bar is not None:
            self.bar.n = min(100.0, 100.0 * fraction)
            self.bar.set_postfix_str(printable(text, 60))
        elif now - self.shown_s >= _LINE_EVERY_S:
            self.shown_s, passed = now, now - self.started
            left = f", about {_duration(passed / fraction - passed)} left" if 0.02 < fraction < 1 else ""
            log(f"{self.title}: {100 * fraction:.0f} %{left}. {text}".rstrip())

    def note(self, line: str, file=None) -> None:
        """Print a line that stays, on standard output."""
        if self.bar is not None:
            self.bar.clear()
        say(line, file)


class TrainingProgress(ProgressPrinter):
    """One line that follows a training: step, loss, speed, remaining time, last saved; messages get their own lines."""

    layout = "{desc}"

    def __init__(self, minutes: float | None = None):
        super().__init__()
        self.deadline = None if minutes is None else self.started + 60.0 * minutes
        self.shown_s, self.message = 0.0, ""

    def __call__(self, status, before: str = "") -> None:
        """Show a ``training.Status``, with some words before it."""
        if status.message and status.message != self.message:
            self.message = status.message
            self.note(before + status.message, sys.stderr)
        now = time.monotonic()
        if now - self.shown_s >= (_LINE_EVERY_S if self.bar is None else 0.3) and status.loss is not None:
            self.shown_s = now
            (log if self.bar is None else self.bar.set_description_str)(printable(before + self.text(status)))

    def text(self, status) -> str:
        """``step 120/2000, loss 6.310 (held out 6.502), 3.2 steps/s, 10 min left, saved 20 s ago``."""
        held = "" if status.validation_loss is None else f" (held out {status.validation_loss:.3f})"
        parts = [f"step {status.step}/{status.steps}, loss {status.loss:.3f}{held}"]
        parts += [f"{status.steps_per_s:.2f} steps/s"] if status.steps_per_s else []
        until = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        left = [seconds for seconds in (until, status.remaining_s) if seconds is not None]
        parts += [f"{_duration(min(left))} left"] if left else []
        age = status.last_saved_age_s
        return ", ".join([*parts, "not saved yet" if age is None else f"saved {_duration(age)} ago"])


def _duration(seconds: float) -> str:
    from svclib.audio.units import duration_text

    return duration_text(seconds)


def say(text: object, file=None) -> None:
    """Print a result, by default on standard output; names in it, of files or from inside them, obey nothing."""
    print(printable(text, lines=True), file=file, flush=True)


def log(text: object) -> None:
    """A line for the person, on stderr."""
    say(text, sys.stderr)
