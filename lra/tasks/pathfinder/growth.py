"""Grow the contours and distractors of Pathfinder images: the generator's inner loops.

The algorithm is that of the public generator (see `rules`), byte for byte if both receive the same
random numbers: an image is attempted from scratch until both contours are complete, and then
distractors are tried. Nothing is drawn here. All geometry is looked up in a record of
`layout.TABLES`, called `t`.
"""

import numpy as np
from numpy.typing import NDArray

from lra.tasks.pathfinder.compiled import compiled
from lra.tasks.pathfinder.layout import CHOICES, DEGREES

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Stream = NDArray[np.uint64]

PADDLE_TRIALS = 3
DISTRACTOR_TRIALS = 5

# A step fails if the weights of all candidates add up to less.
SMALLEST_TOTAL = 1e-4

# No distractor is seeded if less of the image is free.
SMALLEST_FREE_SHARE = 0.01

# Columns of a contour's state: its last pivot and orientation, and its last paddle, which does not
# count as occupied until the next one is placed.
PIVOT_Y, PIVOT_X, ORIENTATION, STAMP, ANCHOR_Y, ANCHOR_X = range(6)

# Rows of the ground on which contours grow.
OCCUPANCY, HALO = range(2)

# Columns of the facts about an image: the number of attempts, the number of distractors placed, the
# margin, and which contour is marked at its first and which at its last paddle.
NUM_FACTS = 5
ATTEMPTS, PLACED, MARGIN, START, END = range(NUM_FACTS)


@compiled
def scramble(word: np.uint64) -> np.uint64:
    """Hash 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def start_stream(stream: Stream, seed: np.uint64, index: np.uint64) -> None:
    """Start an image's generator with words 2 index and 2 index + 1 of SplitMix64."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    origin = scramble(seed + golden)
    stream[0] = scramble(origin + (np.uint64(2) * index + np.uint64(1)) * golden)
    stream[1] = scramble(origin + (np.uint64(2) * index + np.uint64(2)) * golden)


@compiled
def uniform(stream: Stream) -> float:
    """Draw from [0, 1): the top 53 bits of xoroshiro128+ (Blackman and Vigna 2018)."""
    low, high = stream[0], stream[1]
    word = low + high
    high ^= low
    stream[0] = ((low << np.uint64(24)) | (low >> np.uint64(40))) ^ high ^ (high << np.uint64(16))
    stream[1] = (high << np.uint64(37)) | (high >> np.uint64(27))
    return float(word >> np.uint64(11)) * 2.0**-53


@compiled
def below(stream: Stream, bound: int) -> int:
    """Draw an integer from 0 to bound - 1."""
    return int(uniform(stream) * bound)


@compiled
def blank_ground(t: np.record) -> Bytes:
    """Create the ground that contains nothing but the image's border.

    Returns:
        `(2, P)`, rows OCCUPANCY and HALO, flat with rows of `t.stride`. The occupancy says how far
        a pixel is taken, 0 to 255; it is 0 outside the image, where nothing collides. The halo is
        the occupancy dilated by the margin; it is 255 outside the image, where nothing grows.
    """
    ground = np.zeros((2, (t.size + 2 * t.pad) * t.stride), np.uint8)
    ground[HALO] = 255
    for y in range(t.size):
        for x in range(t.size):
            pixel = (t.pad + y) * t.stride + t.pad + x
            depth = min(y, x, t.size - 1 - y, t.size - 1 - x)
            if depth < t.padding:
                ground[OCCUPANCY, pixel] = 255
            if depth >= t.padding + t.margin:
                ground[HALO, pixel] = 0
    return ground


@compiled
def copy_ground(source: Bytes, target: Bytes) -> None:
    """Copy one ground into another."""
    for layer in range(2):
        for pixel in range(source.shape[1]):
            target[layer, pixel] = source[layer, pixel]


@compiled
def overlay(t: np.record, layer: Bytes, place: int, stamp: Bytes, first: int, end: int) -> None:
    """Raise a layer of the ground, from `place` on, to rows `first`..`end` of a stamp."""
    for y in range(first, end):
        # Unsigned, since the test for a negative index, which would wrap, keeps the loop scalar. So
        # does a width known to the compiler, since it then unrolls the loop first.
        start = np.uint64(place + y * t.stride)
        for x in range(np.uint64(t.row)):
            layer[start + x] = max(layer[start + x], stamp[y, x])


@compiled
def occupy(t: np.record, ground: Bytes, contour: Ints) -> None:
    """Add the mask of a contour's last paddle to the occupancy, and its halo to the halo."""
    stamp = contour[STAMP]
    top, left = contour[ANCHOR_Y] - t.reach, contour[ANCHOR_X] - t.reach
    place = (t.pad + top) * t.stride + t.pad + left
    mask, first, end = t.mask[stamp], t.mask_rows[stamp, 0], t.mask_rows[stamp, 1]
    width = 2 * t.reach + 1
    if min(top, left) >= 0 and max(top, left) + width <= t.size:
        overlay(t, ground[OCCUPANCY], place, mask, first, end)
    else:
        # A mask is cropped at the image's rim; a halo need not be, since it is full beyond it.
        for y in range(max(first, -top), min(end, t.size - top)):
            for x in range(max(0, -left), min(width, t.size - left)):
                pixel = place + y * t.stride + x
                ground[OCCUPANCY, pixel] = max(ground[OCCUPANCY, pixel], mask[y, x])
    place -= t.margin * (t.stride + 1)
    first, end = t.halo_rows[stamp, 0], t.halo_rows[stamp, 1]
    overlay(t, ground[HALO], place, t.halo[stamp], first, end)


@compiled
def collides(t: np.record, ground: Bytes, stamp: int, y: int, x: int) -> bool:
    """Return whether a paddle's mask and the occupancy add up to too much anywhere."""
    place = (t.pad + y - t.reach) * t.stride + t.pad + x - t.reach
    limit = t.limit[stamp]
    for row in range(t.limit_rows[stamp, 0], t.limit_rows[stamp, 1]):
        start = np.uint64(place + row * t.stride)
        hit = False
        for column in range(np.uint64(t.row)):
            hit |= ground[OCCUPANCY, start + column] > limit[row, column]
        if hit:
            return True
    return False


@compiled
def extend(t: np.record, ground: Bytes, contour: Ints, stream: Stream, sums: Floats) -> bool:
    """Grow a contour by one paddle, or return False; `sums` is space for the weights."""
    last = contour[ORIENTATION]
    pivot_y = int(np.ceil(contour[PIVOT_Y] + t.step[last, 0]))
    pivot_x = int(np.ceil(contour[PIVOT_X] + t.step[last, 1]))
    place = (t.pad + pivot_y) * t.stride + t.pad + pivot_x
    total = 0.0
    for k in range(t.num_choices[last]):
        pixel = np.uint64(place + t.offset[last, k])
        total += t.weight[last, k] * t.free[ground[HALO, pixel]]
        sums[k] = total
    if total < SMALLEST_TOTAL:
        return False
    for _ in range(PADDLE_TRIALS):
        threshold = uniform(stream) * total
        k = 0
        while sums[k] <= threshold:
            k += 1
        candidate = t.choice[last, k]
        stamp = t.stamp_of[DEGREES + candidate]
        y, x = pivot_y + t.candidate[candidate, 0], pivot_x + t.candidate[candidate, 1]
        if not collides(t, ground, stamp, y, x):
            occupy(t, ground, contour)
            contour[PIVOT_Y], contour[PIVOT_X] = pivot_y, pivot_x
            contour[ORIENTATION] = DEGREES + candidate
            contour[STAMP], contour[ANCHOR_Y], contour[ANCHOR_X] = stamp, y, x
            return True
    return False


@compiled
def begin(t: np.record, contour: Ints, degree: int, y: int, x: int) -> bool:
    """Place a contour's first paddle at a tail; return whether head and pivot are inside."""
    head_y = int(np.ceil(y + t.seed_head[degree, 0]))
    head_x = int(np.ceil(x + t.seed_head[degree, 1]))
    pivot_y = int(np.ceil(head_y + t.seed_pivot[degree, 0]))
    pivot_x = int(np.ceil(head_x + t.seed_pivot[degree, 1]))
    contour[PIVOT_Y], contour[PIVOT_X], contour[ORIENTATION] = pivot_y, pivot_x, degree
    contour[STAMP], contour[ANCHOR_Y], contour[ANCHOR_X] = t.stamp_of[degree], y, x
    least, greatest = min(head_y, head_x, pivot_y, pivot_x), max(head_y, head_x, pivot_y, pivot_x)
    return least >= 0 and greatest < t.size


@compiled
def record(contour: Ints, path: Ints, paddle: int) -> None:
    """Record a contour's last paddle in its path `(length, 3)`: stamp, y, x."""
    path[paddle, 0] = contour[STAMP]
    path[paddle, 1] = contour[ANCHOR_Y]
    path[paddle, 2] = contour[ANCHOR_X]


@compiled
def grow_targets(
    t: np.record,
    blank: Bytes,
    ground: Bytes,
    contours: Ints,
    paths: Ints,
    stream: Stream,
    sums: Floats,
) -> bool:
    """Attempt the two contours once; `paths` `(2, length, 3)` receives their paddles."""
    degree = below(stream, DEGREES)
    rows, columns = t.tails[degree, 2], t.tails[degree, 3]
    if rows == 0:
        return False
    copy_ground(blank, ground)
    tail = below(stream, rows * columns)
    y, x = t.tails[degree, 0] + tail // columns, t.tails[degree, 1] + tail % columns
    # This near the middle, neither contour's head or pivot can leave the image.
    begin(t, contours[0], degree, y, x)
    degree = below(stream, DEGREES)
    bearing = below(stream, DEGREES)
    y = int(np.rint(y + t.neighbour[bearing, 0]))
    x = int(np.rint(x + t.neighbour[bearing, 1]))
    begin(t, contours[1], degree, y, x)
    for k in range(2):
        record(contours[k], paths[k], 0)
    for paddle in range(1, paths.shape[1]):
        for k in range(2):
            if not extend(t, ground, contours[k], stream, sums):
                return False
            record(contours[k], paths[k], paddle)
    # The original leaves out the first contour's last paddle.
    occupy(t, ground, contours[1])
    return True


@compiled
def close_pixels(t: np.record, ground: Bytes, closed: Bytes) -> float:
    """Mark the pixels that a distractor's first paddle may not cover.

    Args:
        t: The tables.
        ground: The ground.
        closed: `(P,)`, receives 1 for every blocked pixel and for the outermost pixels, and stays 0
            outside the image.

    Returns:
        The share of the image that is not blocked.
    """
    num_blocked = 0
    for y in range(t.size):
        start = np.uint64((t.pad + y) * t.stride + t.pad)
        for x in range(np.uint64(t.size)):
            blocked = np.uint8(ground[OCCUPANCY, start + x] >= t.first_blocked)
            closed[start + x] = blocked
            num_blocked += int(blocked)
    corner = t.pad * (t.stride + 1)
    for step in range(t.size):
        for far in (0, t.size - 1):
            closed[corner + far * t.stride + step] = 1
            closed[corner + step * t.stride + far] = 1
    return (t.size * t.size - num_blocked) / (t.size * t.size)


@compiled
def choose_tail(t: np.record, degree: int, closed: Bytes, covered: Bytes, stream: Stream) -> int:
    """Draw a tail y * size + x whose paddle covers no closed pixel; -1 if there is none.

    Args:
        t: The tables.
        degree: The paddle's orientation.
        closed: Closed pixels, from `close_pixels`.
        covered: `(size, size)`, space for the excluded tails.
        stream: The image's generator.
    """
    if not t.usable[degree]:
        return -1
    num_free = 0
    free_of_row = np.empty(t.size, np.int64)
    for y in range(t.size):
        row = covered[y]
        for x in range(t.size):
            row[x] = 0
        for cell in range(t.kernel_size[degree]):
            across = t.pad + t.kernel[degree, cell, 1]
            start = np.uint64((t.pad + y + t.kernel[degree, cell, 0]) * t.stride + across)
            for x in range(np.uint64(t.size)):
                row[x] |= closed[start + x]
        free_of_row[y] = t.size
        for x in range(t.size):
            free_of_row[y] -= row[x]
        num_free += free_of_row[y]
    if num_free == 0:
        return -1
    wanted = below(stream, num_free)
    y = 0
    while wanted >= free_of_row[y]:
        wanted -= free_of_row[y]
        y += 1
    x = -1
    while wanted >= 0:
        x += 1
        wanted -= covered[y, x] == 0
    return int(y * t.size + x)


@compiled
def grow_distractor(
    t: np.record,
    ground: Bytes,
    closed: Bytes,
    covered: Bytes,
    contour: Ints,
    path: Ints,
    stream: Stream,
    sums: Floats,
) -> bool:
    """Attempt one distractor once; on failure, the ground is left half grown."""
    inside = False
    for _ in range(PADDLE_TRIALS):
        degree = below(stream, DEGREES)
        tail = choose_tail(t, degree, closed, covered, stream)
        if tail < 0:
            return False
        y, x = tail // t.size, tail % t.size
        inside = begin(t, contour, degree, y, x)
        if inside:
            break
    if not inside:
        return False
    record(contour, path, 0)
    for paddle in range(1, len(path)):
        if not extend(t, ground, contour, stream, sums):
            return False
        record(contour, path, paddle)
    occupy(t, ground, contour)
    return True


@compiled
def grow_distractors(
    t: np.record, ground: Bytes, kept: Bytes, paths: Ints, stream: Stream, sums: Floats
) -> int:
    """Try `len(paths)` distractors; return how many were placed, which come first in `paths`."""
    closed = np.zeros(ground.shape[1], np.uint8)
    covered = np.empty((t.size, t.size), np.uint8)
    contour = np.empty(6, np.int64)
    placed = 0
    for _ in range(len(paths)):
        copy_ground(ground, kept)
        free_share = close_pixels(t, ground, closed)
        for _ in range(DISTRACTOR_TRIALS):
            path = paths[placed]
            if free_share >= SMALLEST_FREE_SHARE and grow_distractor(
                t, ground, closed, covered, contour, path, stream, sums
            ):
                placed += 1
                break
            copy_ground(kept, ground)
    return placed


@compiled
def grow_images(
    records: NDArray[np.void],
    seed: np.uint64,
    first: int,
    labels: Ints,
    facts: Ints,
    targets: Ints,
    distractors: Ints,
) -> None:
    """Grow the contents of images `first`, `first + 1`, ... of a seed.

    Args:
        records: `(M,)`, one record of tables per margin that an image may draw.
        seed: Seed of all images.
        first: Index of the first image.
        labels: `(n,)`, receives 1 if the marked ends belong to one contour, else 0.
        facts: `(n, 5)`, receives the columns named above.
        targets: `(n, 2, length, 3)`, receives stamp, y and x of the two contours' paddles.
        distractors: `(n, num, length, 3)`, receives those of the distractors; `num` are tried.
    """
    stream = np.empty(2, np.uint64)
    contours = np.empty((2, 6), np.int64)
    sums = np.empty(CHOICES)
    for index in range(len(labels)):
        start_stream(stream, seed, np.uint64(first + index))
        label = below(stream, 2)
        # Drawn before the attempts: a wide margin succeeds less often, but is equally frequent.
        margin = below(stream, len(records)) if len(records) > 1 else 0
        t = records[margin]
        blank = blank_ground(t)
        ground = np.empty_like(blank)
        attempts = 1
        while not grow_targets(t, blank, ground, contours, targets[index], stream, sums):
            attempts += 1
        placed = grow_distractors(t, ground, blank, distractors[index], stream, sums)
        start = below(stream, 2)
        labels[index] = label
        facts[index, ATTEMPTS], facts[index, PLACED], facts[index, MARGIN] = (
            attempts,
            placed,
            margin,
        )
        facts[index, START], facts[index, END] = start, start if label == 1 else 1 - start
