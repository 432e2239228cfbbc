"""How fast a run trains: the median of many windows of updates, and their spread.

Total seconds divided by updates would count a busy moment of the machine as slowness of a backend.
Windows of some updates each have a median, which a burst does not move, and quartiles, which show
that there was one. First calls, which set something up or compile, are counted separately.
"""

import statistics
from dataclasses import dataclass, field

# Minimum updates per window, and maximum number of windows kept.
WINDOW, MAX_WINDOWS = 20, 512


@dataclass
class Speed:
    """Windows of updates, bounded in number, as a checkpoint holds them.

    Args:
        windows: Updates per second and tokens per second of every window that is kept.
        stride: One of every `stride` windows is kept; it doubles whenever the list is full.
        closed: Number of windows so far.
        open: Updates, tokens and seconds of the window that is not full yet.
        first_seconds: Seconds of first calls.
    """

    windows: list[list[float]] = field(default_factory=list)
    stride: int = 1
    closed: int = 0
    open: list[float] = field(default_factory=lambda: [0, 0, 0.0])
    first_seconds: float = 0.0

    def add(self, updates: int, tokens: int, seconds: float) -> None:
        """Count updates, their tokens and their seconds; a window that is full is closed."""
        self.open = [a + b for a, b in zip(self.open, (updates, tokens, seconds), strict=True)]
        if self.open[0] < WINDOW:
            return
        if self.closed % self.stride == 0:
            self.windows.append(self._per_second())
        self.closed += 1
        self.open = [0, 0, 0.0]
        if len(self.windows) == MAX_WINDOWS:
            self.windows = self.windows[::2]
            self.stride *= 2

    def _per_second(self) -> list[float]:
        updates, tokens, seconds = self.open
        return [updates / seconds, tokens / seconds]

    @property
    def _known(self) -> list[list[float]]:
        """The closed windows, or the open one if there is no other."""
        return self.windows or ([self._per_second()] if self.open[0] else [])

    @property
    def steps_per_second(self) -> float | None:
        """Median updates per second; None before the second update."""
        return statistics.median(steps for steps, _ in self._known) if self._known else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median real tokens per second."""
        return statistics.median(tokens for _, tokens in self._known) if self._known else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """First and third quartile of updates per second; None with fewer than two windows."""
        if len(self.windows) < 2:
            return None
        steps = [steps for steps, _ in self.windows]
        low, _, high = statistics.quantiles(steps, n=4, method="inclusive")
        return low, high
