"""CPU seconds of a process tree, by sampling; also of what has ended."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np
import psutil

_SAMPLE_SECONDS = 0.2
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make processes whose parent ends, as Ray's do, children of this one, so that they are counted on."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class TreeClock(threading.Thread):
    """Samples the CPU seconds of all processes that descend from this one, those that have ended among them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seconds: dict[tuple[int, float], float] = {}
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._over.wait(_SAMPLE_SECONDS):
            self.sample()

    def sample(self) -> None:
        """Look once."""
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        self.samples.append((time.time(), sum(self._seconds.values())))

    def stop(self) -> None:
        """Stop sampling."""
        self._over.set()
        self.join()

    def at(self, moment: float) -> float:
        """Give the CPU seconds spent until a moment."""
        times, seconds = zip(*self.samples, strict=True)
        return float(np.interp(moment, times, seconds))
