"""Generate Pathfinder images: any number, in parallel, the same bytes on every machine.

Image i of a seed depends on nothing but the seed and i: not on how many images are generated, in
which chunks, or by how many workers. Workers are threads, since the compiled code holds no lock, so
nothing is pickled, forked or copied. The first call on a machine compiles for some ten seconds.

    images, labels = generate(1000, size=32, seed=7)
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lra.cores import available_cores
from lra.tasks.pathfinder.drawing import draw_images
from lra.tasks.pathfinder.growth import END, MARGIN, NUM_FACTS, PLACED, START, grow_images
from lra.tasks.pathfinder.rules import CONTOUR_LENGTHS, RULES, distractor_length
from lra.tasks.pathfinder.tables import tables

Images = NDArray[np.uint8]
Ints = NDArray[np.int64]

# Small enough that progress is visible and workers finish together.
CHUNK_BYTES = 2**20


class Chunk(NamedTuple):
    """Some consecutive images, and how they were made.

    Args:
        start: Index of the first image.
        images: `(n, size, size)`.
        labels: `(n,)`.
        facts: `(n, 5)`, the columns named in `growth`.
        targets: `(n, 2, length, 3)`, stamp, row and column of the two contours' paddles.
        ends: `(n, 2, 3)`, the same for the marked paddles: a first one, then a last one.
    """

    start: int
    images: Images
    labels: Ints
    facts: Ints
    targets: Ints
    ends: Ints


def generate(
    num_images: int,
    size: int = 32,
    contour_length: int = 14,
    seed: int = 0,
    workers: int | None = None,
    *,
    distractors: bool = True,
    progress: Callable[[int], None] | None = None,
) -> tuple[Images, Ints]:
    """Generate Pathfinder images and their labels.

    Args:
        num_images: Number of images: those from 0 to `num_images - 1` of the seed.
        size: Side of the images: 32 (Pathfinder), 64, 128 (Path-X) or 256.
        contour_length: Paddles in each of the two contours, 3 to 14; published are 6 (easy), 9
            (intermediate) and 14 (hard, as in the Long Range Arena).
        seed: Any integer from 0 to 2**64 - 1.
        workers: Threads; None uses one per core. Does not change the images.
        distractors: False leaves out the short contours, so that nothing else is in the way.
        progress: Called with the number of images finished since the last call.

    Returns:
        Images `(num_images, size, size)` and labels `(num_images,)`: 1 if the two marked ends
        belong to one contour, else 0.

    Raises:
        ValueError: A size or contour length without published parameters, or a number that is
            negative or out of range.
    """
    check(num_images, size, contour_length, seed)
    images = np.empty((num_images, size, size), np.uint8)
    labels = np.empty(num_images, np.int64)
    chunks = generate_chunks(
        num_images, size, contour_length, seed, workers, distractors=distractors
    )
    for start, some_images, some_labels in chunks:
        images[start : start + len(some_images)] = some_images
        labels[start : start + len(some_labels)] = some_labels
        if progress is not None:
            progress(len(some_labels))
    return images, labels


def generate_chunks(
    num_images: int,
    size: int = 32,
    contour_length: int = 14,
    seed: int = 0,
    workers: int | None = None,
    *,
    distractors: bool = True,
    chunk_images: int | None = None,
) -> Iterator[tuple[int, Images, Ints]]:
    """Generate the images of `generate` in order, holding only a few chunks of them.

    Args:
        num_images: As in `generate`, like all arguments that follow.
        size: Side of the images.
        contour_length: Paddles in each of the two contours.
        seed: Any integer from 0 to 2**64 - 1.
        workers: Threads.
        distractors: False leaves out the short contours.
        chunk_images: Images per chunk; None takes a megabyte. Does not change the images.

    Yields:
        Index of the first image, images `(n, size, size)`, labels `(n,)`.

    Raises:
        ValueError: As in `generate`.
    """
    check(num_images, size, contour_length, seed)
    workers = available_cores() if workers is None else workers
    chunk_images = max(1, CHUNK_BYTES // size**2) if chunk_images is None else chunk_images
    if workers < 1 or chunk_images < 1:
        raise ValueError(
            f"workers = {workers}, chunk_images = {chunk_images}: must be at least 1, or None"
        )

    def make(start: int) -> Chunk:
        count = min(chunk_images, num_images - start)
        return make_chunk(start, count, size, contour_length, seed, distractors=distractors)

    # Before any thread, so that numba compiles once and wrong tables raise in the caller.
    make_chunk(0, 0, size, contour_length, seed, distractors=distractors)
    chunks = in_order(make, range(0, num_images, chunk_images), workers)
    return ((chunk.start, chunk.images, chunk.labels) for chunk in chunks)


def make_chunk(
    start: int, count: int, size: int, contour_length: int, seed: int, *, distractors: bool = True
) -> Chunk:
    """Generate images `start` to `start + count - 1` in the calling thread."""
    num_distractors = RULES[size].num_distractors(contour_length) if distractors else 0
    records = tables(size)
    labels = np.empty(count, np.int64)
    facts = np.empty((count, NUM_FACTS), np.int64)
    targets = np.empty((count, 2, contour_length, 3), np.int64)
    shorts = np.empty((count, num_distractors, distractor_length(contour_length), 3), np.int64)
    grow_images(records, np.uint64(seed), start, labels, facts, targets, shorts)

    rows = np.arange(count)
    ends = np.stack([targets[rows, facts[:, START], 0], targets[rows, facts[:, END], -1]], 1)
    images = np.empty((count, size, size), np.uint8)
    margins, placed = np.ascontiguousarray(facts[:, [MARGIN, PLACED]].T)
    draw_images(records, margins, placed, targets, shorts, ends, images)
    return Chunk(start, images, labels, facts, targets, ends)


def in_order(make: Callable[[int], Chunk], starts: range, workers: int) -> Iterator[Chunk]:
    """Yield `make(start)` for all starts in order, a few ahead of the reader."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Chunk]] = deque()
        try:
            for start in starts:
                pending.append(pool.submit(make, start))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def check(num_images: int, size: int, contour_length: int, seed: int) -> None:
    """Raise a `ValueError` if no images can be generated from the arguments."""
    if num_images < 0:
        raise ValueError(f"num_images = {num_images}: must not be negative")
    if size not in RULES:
        raise ValueError(f"size = {size}: choose from {', '.join(map(str, RULES))}")
    if contour_length not in CONTOUR_LENGTHS:
        raise ValueError(
            f"contour_length = {contour_length}: choose 3 to 14; published are 6, 9 and 14"
        )
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed = {seed}: choose an integer from 0 to 2**64 - 1")
