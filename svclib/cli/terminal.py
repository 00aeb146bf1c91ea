"""Progress and messages of the command line, on standard error."""

import sys
import time

_LINE_EVERY_S = 10.0


def duration_text(seconds: float) -> str:
    """Such as ``3 min``."""
    from svclib.audio import units

    return units.duration_text(seconds)


class ProgressPrinter:
    """Progress on stderr: a bar with the remaining time on a terminal, else a line about every ten seconds."""

    def __init__(self, title: str):
        self.title, self.bar = title, None
        self.started = self.shown_s = time.monotonic()

    def __enter__(self):
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f} %|{bar:20}| {elapsed}<{remaining}{postfix}"
            self.bar = tqdm(total=100.0, desc=self.title, bar_format=layout, leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, fraction: float, text: str = "") -> None:
        """Show how far it is (0 to 1) and what is being done; 0 starts the clock anew."""
        if fraction == 0:
            self.started = time.monotonic()
            if self.bar is not None:
                self.bar.reset()
        if self.bar is not None:
            self.bar.n = max(0.0, min(100.0, 100.0 * fraction))
            self.bar.set_postfix_str(text[:60], refresh=False)
            self.bar.refresh()
            return
        now = time.monotonic()
        if now - self.shown_s >= _LINE_EVERY_S:
            self.shown_s, passed = now, now - self.started
            left = f", about {duration_text(passed / fraction - passed)} left" if 0.02 < fraction < 1 else ""
            log(f"{self.title}: {100 * fraction:.0f} %{left}. {text}".rstrip())

    def note(self, line: str) -> None:
        """Print a line that stays, on standard output."""
        if self.bar is not None:
            self.bar.clear()
        print(line, flush=True)


class TrainingProgress:
    """One line that follows a training: step, loss, speed, remaining time, last saved; messages get their own lines."""

    def __init__(self, minutes: float | None = None):
        self.deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        self.shown_s, self.message, self.width, self.live = 0.0, "", 0, sys.stderr.isatty()

    def __call__(self, status, before: str = "") -> None:
        """Show a ``training.Status``, with some words before it."""
        if status.message and status.message != self.message:
            self.message = status.message
            self._line(before + status.message, keep=True)
        now = time.monotonic()
        if now - self.shown_s >= (0.3 if self.live else _LINE_EVERY_S) and status.loss is not None:
            self.shown_s = now
            self._line(before + self.text(status), keep=not self.live)

    def text(self, status) -> str:
        """``step 120/2000, loss 6.310 (held out 6.502), 3.2 steps/s, 10 min left, saved 20 s ago``."""
        held = "" if status.validation_loss is None else f" (held out {status.validation_loss:.3f})"
        parts = [f"step {status.step}/{status.steps}, loss {status.loss:.3f}{held}"]
        if status.steps_per_s:
            parts.append(f"{status.steps_per_s:.2f} steps/s")
        left = status.remaining_s
        if self.deadline is not None:
            until = max(0.0, self.deadline - time.monotonic())
            left = until if left is None else min(left, until)
        if left is not None:
            parts.append(f"{duration_text(left)} left")
        age = status.last_saved_age_s
        parts.append("not saved yet" if age is None else f"saved {duration_text(age)} ago")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the line."""
        if self.live and self.width:
            self._line("", keep=False)

    def _line(self, text: str, keep: bool) -> None:
        if self.live:
            print(f"\r{text:<{self.width}}", end="\n" if keep else "", file=sys.stderr, flush=True)
            self.width = 0 if keep else len(text)
        else:
            log(text)


def log(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)
