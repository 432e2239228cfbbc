"""A slow Pathfinder generator that takes the published algorithm literally.

It has whole images in floating point, dilation by shifting, sines from the library, and every line
drawn when it is needed. It shares nothing with `lra.tasks` but the random numbers, whose generator
is implemented here a second time.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

WORD = 2**64 - 1

# size: padding, seed distance, marker radius, paddles of all distractors, length, thickness,
# margins, continuity, contrast of snakes, contrast of the targets' paddles
SETTINGS = {
    32: (1, 7, 1.5, 20, 2, 0.5, [1], 1.0, 2.0, 0.75),
    64: (1, 12, 2.5, 22, 5, 1.0, [1], 1.8, 0.8, 1.0),
    128: (1, 20, 3.0, 35, 5, 1.5, [2, 3], 1.8, 0.9, 1.0),
    256: (22, 27, 5.0, 30, 5, 2.0, [3], 1.8, 1.0, 1.0),
}


def split_mix(word):
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


class Stream:
    """xoroshiro128+ for image `index` of `seed`."""

    def __init__(self, seed, index):
        golden = 0x9E3779B97F4A7C15
        origin = split_mix((seed + golden) & WORD)
        self.state = [split_mix((origin + (2 * index + k) * golden) & WORD) for k in (1, 2)]

    def uniform(self):
        low, high = self.state
        word = (low + high) & WORD
        high ^= low
        turned = ((low << 24) | (low >> 40)) & WORD
        self.state = [turned ^ high ^ (high << 16 & WORD), ((high << 37) | (high >> 27)) & WORD]
        return (word >> 11) / 2**53

    def integer(self, low, high):
        return low + int(self.uniform() * (high - low))


def to_bytes(image):
    """Stretch an image to 0..255, as the old scipy did before resizing and saving."""
    low, high = image.min(), image.max()
    scaled = (image - low) * (255.0 / ((high - low) or 1))
    return (scaled.clip(0, 255) + 0.5).astype(np.uint8)


def lanczos(image, size):
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)) / 255


def dilate(image, kernel):
    """Take the maximum over the kernel's cells; the lowest double if all lie outside."""
    anchor = kernel.shape[0] // 2
    lowest = np.finfo(float).min
    padded = np.pad(image.astype(float), anchor, constant_values=lowest)
    result = np.full(image.shape, lowest)
    for y, x in np.argwhere(kernel):
        np.maximum(result, padded[y : y + len(image), x : x + len(image)], out=result)
    return result


def disk(radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * radius


def move(point, angle, distance):
    """Move a point and round both coordinates up."""
    return (
        math.ceil(point[0] + distance * np.sin(angle)),
        math.ceil(point[1] + distance * np.cos(angle)),
    )


def turn_round(angle):
    return angle + np.pi if angle < 0 else angle - np.pi


class Painter:
    """One image: its margin, its occupancy, its random numbers."""

    def __init__(self, size, margin, stream):
        self.size, self.margin, self.stream = size, margin, stream
        padding, self.seed_distance, self.radius = SETTINGS[size][:3]
        self.length, self.thickness, _, self.continuity = SETTINGS[size][4:8]
        self.border = np.ones((size, size))
        self.border[padding:-padding, padding:-padding] = 0

    def inside(self, *points):
        return all(0 <= value < self.size for point in points for value in point)

    def paddle(self, size, start, angle, contrast=1.0):
        """Draw a paddle and its mask into empty images of the given size."""
        reach = self.length + math.ceil(self.thickness) + self.margin
        canvas = Image.new("F", (4 * reach + 1, 4 * reach + 1), 0)
        end = move((2 * reach, 2 * reach), angle, 2 * self.length)
        width = round(2 * self.thickness)
        ImageDraw.Draw(canvas).line([(2 * reach, 2 * reach), end[::-1]], fill=255, width=width)
        fine = np.array(canvas)
        wide = dilate(fine, disk(2 * self.margin)).astype(np.uint8)
        stamps = [lanczos(fine.astype(np.uint8), 2 * reach + 1) * contrast]
        stamps.append(lanczos(wide, 2 * reach + 1))
        images = []
        for stamp in stamps:
            image = np.zeros((size + 2 * reach, size + 2 * reach), np.float32)
            top, left = start
            if -reach <= min(start) and max(start) < size + reach:
                image[top : top + 2 * reach + 1, left : left + 2 * reach + 1] = stamp
            images.append(image[reach:-reach, reach:-reach].astype(float))
        return images

    def free_pixels(self, closed, angle):
        """List the tails from which a first paddle touches nothing of `closed`."""
        side = 2 * (self.length + self.margin) + 1
        middle = self.length + self.margin + 1
        _, mask = self.paddle(side, (middle, middle), angle)
        touched = np.ceil(dilate(closed, mask == 1) - 0.3)
        if touched.min() < 0:
            return []
        return np.argwhere(touched == 0)

    def first_paddle(self, tail, angle, contrast):
        head = move(tail, angle, self.length)
        pivot = move(head, turn_round(angle), self.length + self.margin)
        image, mask = self.paddle(self.size, tail, angle, contrast)
        contour = {"pivot": pivot, "angle": angle, "mask": mask, "image": image}
        return contour, self.inside(head, pivot)

    def candidates(self, pivot, last, occupancy):
        """Return candidate heads, their angles and cumulative probabilities; None if hopeless."""
        radius = self.length + self.margin
        arc = np.arange(0, 360, 360.0 / (2 * radius * np.pi)) * np.pi / 180
        circle = np.stack([pivot[0] + radius * np.sin(arc), pivot[1] + radius * np.cos(arc)], 1)
        circle = circle[((circle >= 0) & (circle < self.size)).all(1)]
        heads = np.array(sorted(set(map(tuple, circle.astype(int).tolist()))), int).reshape(-1, 2)
        angles = np.arctan2(heads[:, 0] - pivot[0], heads[:, 1] - pivot[1])
        turn = np.abs(angles - last)
        turn = np.minimum(turn, 2 * np.pi - turn) * self.continuity
        weights = np.cos(np.minimum(turn, np.pi / 2)).clip(0) ** 2
        weights *= 1 - dilate(occupancy, disk(self.margin))[heads[:, 0], heads[:, 1]]
        if weights.sum() < 1e-4:
            return None
        return heads, angles, np.cumsum(weights / weights.sum())

    def extend(self, contour, occupancy, contrast):
        """Add a paddle to the contour; return the occupancy after it, or None if that fails."""
        step = self.length + 2 * self.margin
        pivot = move(contour["pivot"], contour["angle"], step)
        found = self.candidates(pivot, contour["angle"], occupancy)
        if found is None:
            return None
        for _ in range(3):
            choice = np.flatnonzero(found[2] > self.stream.uniform())[0]
            head, angle = found[0][choice], found[1][choice]
            image, mask = self.paddle(self.size, head, turn_round(angle), contrast)
            if (occupancy + mask).max() < 1.8:
                occupancy = np.maximum(occupancy, contour["mask"])
                image = np.maximum(image, contour["image"])
                contour |= {"pivot": pivot, "angle": angle, "mask": mask, "image": image}
                contour["head"] = tuple(head.tolist())
                return occupancy
        return None

    def degree(self):
        return self.stream.integer(-180, 180) * np.pi / 180

    def targets(self, contour_length, contrast):
        """Attempt the two contours; return them and the occupancy, or None."""
        angle = self.degree()
        closed = np.ones((self.size, self.size))
        far = 2 * self.seed_distance
        closed[far:-far, far:-far] = 0
        tails = self.free_pixels(np.maximum(closed, self.border), angle)
        if len(tails) == 0:
            return None
        tail = tuple(tails[self.stream.integer(0, len(tails))].tolist())
        first, inside = self.first_paddle(tail, angle, contrast)
        assert inside
        angle = self.degree()
        bearing = self.stream.integer(0, 360) * np.pi / 180
        other = (
            round(tail[0] + self.seed_distance * np.sin(bearing)),
            round(tail[1] + self.seed_distance * np.cos(bearing)),
        )
        second, inside = self.first_paddle(other, angle, contrast)
        assert inside
        first["tail"], second["tail"] = tail, other
        occupancy = self.border
        for _ in range(contour_length - 1):
            for contour in (first, second):
                occupancy = self.extend(contour, occupancy, contrast)
                if occupancy is None:
                    return None
        return (first, second), np.maximum(occupancy, second["mask"])

    def distractor(self, occupancy, num_paddles, contrast):
        """Attempt a distractor; return its image and the occupancy, or None."""
        closed = occupancy.copy()
        closed[[0, -1]] = closed[:, [0, -1]] = 1
        for _ in range(3):
            angle = self.degree()
            tails = self.free_pixels(closed, angle)
            if len(tails) == 0 or (occupancy <= 0.3).mean() < 0.01:
                return None
            tail = tails[self.stream.integer(0, len(tails))]
            contour, inside = self.first_paddle(tail, angle, contrast)
            if inside:
                break
        else:
            return None
        for _ in range(num_paddles - 1):
            occupancy = self.extend(contour, occupancy, contrast)
            if occupancy is None:
                return None
        return contour["image"], np.maximum(occupancy, contour["mask"])

    def marker(self, place):
        fine = np.arange(2 * self.size)
        distance = (fine[:, None] - 2 * place[0]) ** 2 + (fine - 2 * place[1]) ** 2
        return lanczos(to_bytes((distance <= (2 * self.radius) ** 2) * 1.0), self.size)


def draw(size, contour_length, seed, index, distractors=True):
    """Return image `index` of a seed, its label, and the numbers of attempts and of distractors."""
    _, _, _, total, _, _, margins, _, contrast, target_contrast = SETTINGS[size]
    stream = Stream(seed, index)
    label = stream.integer(0, 2)
    margin = margins[stream.integer(0, 2)] if len(margins) == 2 else margins[0]
    painter = Painter(size, margin, stream)
    attempts, grown = 0, None
    while grown is None:
        attempts += 1
        grown = painter.targets(contour_length, target_contrast * contrast)
    contours, occupancy = grown
    image = np.maximum(contours[0]["image"], contours[1]["image"])
    placed = 0
    for _ in range(total // (contour_length // 3) if distractors else 0):
        for _ in range(5):
            done = painter.distractor(occupancy, contour_length // 3, contrast)
            if done is not None:
                image, occupancy = np.maximum(image, done[0]), done[1]
                placed += 1
                break
    start = stream.integer(0, 2)
    end = start if label == 1 else 1 - start
    for place in (contours[start]["tail"], contours[end]["head"]):
        image = np.maximum(image, painter.marker(place))
    return to_bytes(image), label, attempts, placed
