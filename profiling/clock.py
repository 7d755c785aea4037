"""Split a stretch of work on a device into timed parts."""

import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Marks on the device's timeline; reading them waits, setting them does not."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """End a part."""
        self._marks.append((part, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Return the time of each part in ms; parts of one name are added up."""
        if self._cuda:
            self._marks[-1][1].synchronize()
        times: defaultdict[str, float] = defaultdict(float)
        for (_, start), (part, end) in pairwise(self._marks):
            times[part] += self._between(start, end)
        return dict(times)

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) if self._cuda else float(end - start) * 1000

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
