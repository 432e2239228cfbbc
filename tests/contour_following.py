"""Follow the contours of a 128-pixel Pathfinder image without distractors, by its pixels alone.

Paddles are the connected bright spots, markers the brightest disks. Neighbouring paddles of a
contour point at a common pivot, a margin beyond their ends, while other paddles stay two margins
away: so ends belong together if the points a margin beyond them nearly coincide.
"""

import numpy as np

PADDLE_LENGTH = 5
MARKER_RADIUS = 3
NUM_PADDLES = 28

# Lines reach 0.9 of 255, markers all of it.
BRIGHT = 128
BRIGHTEST = 242

# Pivots are rounded twice, and directions are read off a few pixels.
NEAR = 4.0


def connected(bright):
    """Split the true pixels of a mask into 8-connected spots, each `(n, 2)` rows and columns."""
    left = set(map(tuple, np.argwhere(bright).tolist()))
    spots = []
    while left:
        spot = [left.pop()]
        for y, x in spot:
            around = {(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= around
            spot.extend(around)
        spots.append(np.array(spot))
    return spots


def paddle_pivots(image, spot, margin):
    """Return the two points (y, x) a margin beyond the ends of a paddle."""
    weights = image[tuple(spot.T)].astype(float)
    middle = np.average(spot, 0, weights)
    _, vectors = np.linalg.eigh(np.cov((spot - middle).T, aweights=weights))
    reach = vectors[:, 1] * (PADDLE_LENGTH / 2 + margin)
    return [middle + reach, middle - reach]


def marked_pivot(image, spot, margin):
    """Return the one pivot of a paddle whose other end is in the middle of a marker."""
    values = image[tuple(spot.T)].astype(float)
    middle = spot[values >= BRIGHTEST].mean(0)
    outside = np.linalg.norm(spot - middle, axis=1) > MARKER_RADIUS + 0.5
    if not outside.any():
        return []
    direction = np.average(spot[outside] - middle, 0, values[outside])
    return [middle + direction / np.linalg.norm(direction) * (PADDLE_LENGTH + margin)]


def link(pivots):
    """Pair nearby pivots of different paddles, nearest first; return the pairs and the widest gap.

    `pivots` are pairs (paddle, point).
    """
    points = np.array([point for _, point in pivots])
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    links, used, widest = [], set(), 0.0
    for place in np.argsort(distances, axis=None):
        first, second = divmod(int(place), len(points))
        gap = distances[first, second]
        if gap > NEAR or len(links) == NUM_PADDLES - 2:
            break
        if first >= second or pivots[first][0] == pivots[second][0] or {first, second} & used:
            continue
        used |= {first, second}
        links.append((pivots[first][0], pivots[second][0]))
        widest = gap
    return links, widest


def chains(links, count):
    """Return the sets of paddles that links join."""
    groups = [{paddle} for paddle in range(count)]
    for first, second in links:
        a = next(group for group in groups if first in group)
        b = next(group for group in groups if second in group)
        if a is not b:
            groups.remove(b)
            a |= b
    return groups


def marked_ends_joined(image):
    """Return whether one contour joins both markers, or None if the pixels do not show it.

    They show it if the image has 28 separate paddles, two of which bear one marker each, and if
    linking them by common pivots, with either of the two margins, makes two chains of 14.
    """
    spots = connected(image >= BRIGHT)
    disks = [
        connected(
            np.isin(np.arange(image.size), spot @ [image.shape[1], 1]).reshape(image.shape)
            & (image >= BRIGHTEST)
        )
        for spot in spots
    ]
    marked = [paddle for paddle, disk in enumerate(disks) if disk]
    if len(spots) != NUM_PADDLES or len(marked) != 2 or any(len(disks[k]) != 1 for k in marked):
        return None
    verdicts = []
    for margin in (2, 3):
        pivots = [
            (paddle, point)
            for paddle, spot in enumerate(spots)
            for point in (marked_pivot if paddle in marked else paddle_pivots)(image, spot, margin)
        ]
        links, widest = link(pivots)
        groups = chains(links, len(spots))
        if sorted(map(len, groups)) == [NUM_PADDLES // 2] * 2:
            verdicts.append((widest, any(set(marked) <= group for group in groups)))
    return min(verdicts)[1] if verdicts else None
