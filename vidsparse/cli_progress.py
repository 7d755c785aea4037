"""Progress of a comparison with the time left: a bar on a terminal, else a line per clip."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vidsparse import cli_common as common

if TYPE_CHECKING:
    from vidsparse.compare import Progress


@contextmanager
def clip_progress(*, quiet: bool) -> Iterator["Callable[[Progress], None]"]:
    """Show steps, clips and the time left: a bar on a terminal, else one line per clip."""
    if quiet or not sys.stderr.isatty():
        yield (lambda _: None) if quiet else _line_per_clip()
        return
    from rich import progress as rich_progress

    text, left = (
        rich_progress.TextColumn(x) for x in ("{task.description}", "{task.fields[left]}")
    )
    columns = (text, rich_progress.BarColumn(), rich_progress.TimeElapsedColumn(), left)
    clock = TimeLeft()
    with rich_progress.Progress(*columns, console=common.stderr_console(), transient=True) as bars:
        task = bars.add_task("warming up", total=None, left="")

        def tell(now: "Progress") -> None:
            total, done = now.clips * now.steps, (now.number - 1) * now.steps + now.step
            name = f"clip {now.number} of {now.clips}: {now.clip}"
            bars.update(task, description=name, total=total, completed=done, left=clock.tell(now))

        yield tell


class TimeLeft:
    """Estimate the time left from what the clips of this run took so far."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._start, self._first = now, now(), 0.0

    def tell(self, progress: "Progress") -> str:
        """Return "about 3 min left"; nothing before the first step was seen to take time."""
        total = progress.clips * progress.steps
        done = (progress.number - 1) * progress.steps + progress.step
        if done == 1:
            # Before it lies the warm-up.
            self._start, self._first = self._now(), 1.0
            return ""
        spent = self._now() - self._start
        return duration_left(spent / (done - self._first) * (total - done))


def duration_left(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds / 3600:.1f} h left"


def _line_per_clip() -> "Callable[[Progress], None]":
    clock = TimeLeft()

    def tell(now: "Progress") -> None:
        left = clock.tell(now)
        if now.step == now.steps:
            common.note(f"clip {now.number} of {now.clips}: {now.clip}; {left}")

    return tell
