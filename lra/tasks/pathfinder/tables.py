"""Fill the tables of `layout`, the same on every machine.

Sines are correctly rounded (`trigonometry`); stamps are drawn by Pillow and verified by a checksum.
"""

import hashlib
import math
from functools import cache
from itertools import product

import numpy as np
import PIL
from numpy.typing import NDArray

from lra.tasks.pathfinder.layout import DEGREES, ROW, TABLES
from lra.tasks.pathfinder.rules import RULES, Rules
from lra.tasks.pathfinder.stamps import (
    dilate,
    draw_markers,
    draw_paddle,
    line_end,
    marker_reach,
)
from lra.tasks.pathfinder.trigonometry import cosine, direction, sine

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Two masks collide if their values add up to this or more anywhere.
COLLISION = 1.8

# A seed's paddle may not touch pixels whose occupancy is above this.
BLOCKED = 0.3

# sha256 of the tables of each image size, with Pillow 10 to 13.
CHECKSUMS = {
    32: "ed06ff8e5011ee29ad7081b4d288597bc3866619ad0ed18176dcd69435a5f390",
    64: "4374486bf5cc17f0cce84e5969be6d6fd38697c5cf4fd7ecae6bd17e543276bd",
    128: "b48609d9a6224721be8425ed5adfe7044f5cec3d8030a06a2c5ba9932ffb8ef4",
    256: "1816449063c10cd3c3638069696dcc547718951974cca98966f09c0bd2997fca",
}


def seed_orientations() -> list[float]:
    """List the 360 orientations of a seed in radians, -180 degrees first."""
    return [degree * math.pi / 180 for degree in range(-180, 180)]


def reverse(orientation: float) -> float:
    """Turn an orientation by pi, staying within -pi..pi."""
    return orientation + math.pi if orientation < 0 else orientation - math.pi


def offsets(orientations: list[float], length: float) -> Floats:
    """Return the steps `(n, 2)` (y, x) of a given length along each orientation."""
    return np.array([[length * sine(angle), length * cosine(angle)] for angle in orientations])


def candidate_offsets(radius: int) -> list[tuple[int, int]]:
    """List the pixels of a circle, sampled one pixel of arc apart, by row and column."""
    # The original writes the arc exactly so, and its last bit decides the number of samples.
    step = 360.0 / (2 * radius * math.pi)
    angles = [count * step * math.pi / 180 for count in range(math.ceil(360 / step))]
    # The original adds the (integer) pivot first and then truncates what is inside the image, which
    # is the same as rounding down.
    samples = {
        (math.floor(radius * sine(angle)), math.floor(radius * cosine(angle))) for angle in angles
    }
    return sorted(samples)


def turn_weight(orientation: float, last: float, continuity: float) -> float:
    """Return the weight of a paddle of this orientation after one of orientation `last`."""
    difference = abs(orientation - last)
    turn = min(difference, 2 * math.pi - difference) * continuity
    return cosine(turn) ** 2 if turn < math.pi / 2 else 0.0


def seed_kernel(rules: Rules, margin: int, mask: Bytes) -> list[tuple[int, int]]:
    """List the offsets (y, x) that a seed's paddle is assumed to cover, relative to its tail.

    Only mask bytes of 255 count. The original draws the paddle one pixel to the right of and below
    the tail, and crops the stamp to `2 (length + margin) + 1`.
    """
    radius = rules.paddle_length + margin
    shift = 1 - (rules.stamp_radius + margin)
    cells = [(int(y) + shift, int(x) + shift) for y, x in np.argwhere(mask == 255)]
    return [(y, x) for y, x in cells if max(abs(y), abs(x)) <= radius]


def works_at_corners(kernel: list[tuple[int, int]]) -> bool:
    """Return whether a seed's kernel overlaps the image wherever its tail is.

    The original gives up on an orientation whose kernel is entirely outside the image for some
    pixel, which happens first at a corner.
    """
    return all(
        any(y * down >= 0 and x * right >= 0 for y, x in kernel)
        for down, right in product((-1, 1), repeat=2)
    )


def free_tails(rules: Rules, kernel: list[tuple[int, int]]) -> list[int]:
    """Return first row, first column, rows and columns of the tails that fit the central square."""
    if not works_at_corners(kernel):
        return [0, 0, 0, 0]
    first, last = 2 * rules.seed_distance, rules.size - 2 * rules.seed_distance - 1
    top, left = (first - min(axis) for axis in zip(*kernel, strict=True))
    bottom, right = (last - max(axis) for axis in zip(*kernel, strict=True))
    if bottom < top or right < left:
        return [0, 0, 0, 0]
    return [top, left, bottom - top + 1, right - left + 1]


def ink(contrast: float) -> Floats:
    """Return the values of bytes 0..255 at a contrast, with the original's single precision."""
    return (np.arange(256) / 255 * contrast).astype(np.float32).astype(np.float64)


def row_span(counts: NDArray[np.bool_]) -> Ints:
    """Return the first row and end `(S, 2)` of the set pixels in stamps `(S, W, W)`."""
    rows = np.any(counts, 2)  # (S, W)
    return np.stack([rows.argmax(1), rows.shape[1] - np.flip(rows, 1).argmax(1)], 1)


def put(t: np.record, name: str, value: NDArray[np.generic]) -> None:
    """Write a table into its space, from the first element of every axis on."""
    t[name][tuple(slice(length) for length in value.shape)] = value


def put_stamps(t: np.record, rules: Rules, margin: int, turns: list[float]) -> None:
    """Draw the paddles of all orientations, drawing equal ones once."""
    # A seed is drawn forwards from its tail, all other paddles backwards from their heads.
    orientations = [*seed_orientations(), *map(reverse, turns)]
    drawn = [line_end(rules, margin, orientation) for orientation in orientations]
    ends = sorted(set(drawn))
    paddles = [draw_paddle(rules, margin, end) for end in ends]
    mask = np.stack([mask for _, mask in paddles])
    halo = np.stack([dilate(np.pad(stamp, margin), margin) for stamp in mask])
    occupied = ink(1.0)
    limits = [(occupied + value < COLLISION).nonzero()[0].max() for value in occupied]
    limit = np.array(limits, np.uint8)[mask]
    put(t, "stamp_of", np.array([ends.index(end) for end in drawn]))
    put(t, "line", np.stack([line for line, _ in paddles]))
    put(t, "mask", mask)
    t["limit"] = 255
    put(t, "limit", limit)
    put(t, "halo", halo)
    put(t, "mask_rows", row_span(mask > 0))
    put(t, "limit_rows", row_span(limit < 255))
    put(t, "halo_rows", row_span(halo > 0))


def put_turns(t: np.record, rules: Rules, margin: int, circle: list[tuple[int, int]]) -> None:
    """Weigh every candidate of the circle after every orientation."""
    turns = [direction(y, x) for y, x in circle]
    orientations = [*seed_orientations(), *turns]
    put(t, "step", offsets(orientations, rules.paddle_length + 2 * margin))
    put(t, "candidate", np.array(circle))
    t["free"] = 1 - ink(1.0)
    for index, last in enumerate(orientations):
        weights = np.array([turn_weight(turn, last, rules.continuity) for turn in turns])
        choices = np.flatnonzero(weights)
        t["num_choices"][index] = len(choices)
        t["choice"][index, : len(choices)] = choices
        t["weight"][index, : len(choices)] = weights[choices]
        t["offset"][index, : len(choices)] = np.array(circle)[choices] @ [t["stride"], 1]


def put_seeds(t: np.record, rules: Rules, margin: int) -> None:
    """Find where contours can begin."""
    seeds = seed_orientations()
    t["seed_head"] = offsets(seeds, rules.paddle_length)
    t["seed_pivot"] = offsets([reverse(seed) for seed in seeds], rules.paddle_length + margin)
    bearings = [degree * math.pi / 180 for degree in range(DEGREES)]
    t["neighbour"] = offsets(bearings, rules.seed_distance)
    t["first_blocked"] = np.flatnonzero(ink(1.0) > BLOCKED)[0]
    for degree in range(DEGREES):
        cells = seed_kernel(rules, margin, t["mask"][t["stamp_of"][degree]])
        t["tails"][degree] = free_tails(rules, cells)
        t["usable"][degree] = works_at_corners(cells)
        t["kernel_size"][degree] = len(cells)
        t["kernel"][degree, : len(cells)] = cells


def put_inks(t: np.record, rules: Rules) -> None:
    """Set the values that the image is drawn with."""
    t["target_value"] = ink(rules.target_contrast)
    t["distractor_value"] = ink(rules.distractor_contrast)
    # Only markers are in double precision.
    t["marker_value"] = np.arange(256) / 255
    t["marker_radius"], t["marker_border"] = marker_reach(rules)
    put(t, "marker", draw_markers(rules))


def build_tables(size: int) -> NDArray[np.void]:
    """Build the records `(M,)` of an image size, one per margin."""
    rules = RULES[size]
    records = np.zeros(len(rules.margins), TABLES)
    for margin, t in zip(rules.margins, records.view(np.recarray), strict=True):
        t["size"], t["padding"], t["margin"] = size, rules.padding, margin
        t["reach"] = rules.stamp_radius + margin
        t["row"] = ROW // 2 if 2 * (t["reach"] + margin) < ROW // 2 else ROW
        # Pivots are less than margin + 3 outside, candidates a paddle's length and margin farther.
        t["pad"] = t["reach"] + margin + 3
        t["stride"] = t["pad"] + size + ROW
        circle = candidate_offsets(rules.paddle_length + margin)
        put_stamps(t, rules, margin, [direction(y, x) for y, x in circle])
        put_turns(t, rules, margin, circle)
        put_seeds(t, rules, margin)
        put_inks(t, rules)
    return records


def checksum(records: NDArray[np.void]) -> str:
    """Return the sha256 of all tables, little-endian, in the order of TABLES."""
    digest = hashlib.sha256()
    for name in TABLES.names or ():
        column = records[name]
        digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


@cache
def tables(size: int) -> NDArray[np.void]:
    """Return the records `(M,)` of an image size, one per margin, after checking their checksum.

    Raises:
        RuntimeError: Pillow draws different stamps from those that define the data.
    """
    records = build_tables(size)
    if checksum(records) != CHECKSUMS[size]:
        raise RuntimeError(
            f"the Pathfinder tables for size {size} have the checksum {checksum(records)}, not "
            f"{CHECKSUMS[size]}: Pillow {PIL.__version__} draws different stamps from Pillow 10 "
            "to 13, which define the data; install one of these"
        )
    return records
