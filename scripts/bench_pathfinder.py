"""Measure how many Pathfinder images one core generates per second.

    python scripts/bench_pathfinder.py

Expect more than 5,000 at size 32 and 200 at size 128 (hard); the public generator makes about 5 and
0.4. Compiling and building tables, once per machine and once per process, are timed separately.
"""

import time

from lra.tasks.pathfinder.generator import generate

# Images per repeat; a repeat takes about a second.
NUM_IMAGES = {32: 5000, 64: 20, 128: 300, 256: 300}
REPEATS = 3


def main() -> None:
    """Print images per second for every size, the median of a few seeds."""
    start = time.perf_counter()
    generate(1, workers=1)
    print(f"ready after {time.perf_counter() - start:.1f} s")
    for size, count in NUM_IMAGES.items():
        generate(1, size, workers=1)
        seconds = []
        for seed in range(REPEATS):
            start = time.perf_counter()
            generate(count, size, seed=seed, workers=1)
            seconds.append(time.perf_counter() - start)
        print(f"size {size}, contour length 14: {count / sorted(seconds)[REPEATS // 2]:,.0f}/s")


if __name__ == "__main__":
    main()
