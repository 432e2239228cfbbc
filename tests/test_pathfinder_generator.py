"""The Pathfinder generator against the published algorithm, figures and semantics.

The published figures were measured on images that the public generator drew (300 of size 32, 80 of
size 128, hard).
"""

import hashlib
import math
import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import contour_following
import numpy as np
import pathfinder_reference
import pytest

from lra.tasks.pathfinder.generator import generate, generate_chunks, make_chunk
from lra.tasks.pathfinder.growth import ATTEMPTS, MARGIN, PLACED
from lra.tasks.pathfinder.rules import RULES
from lra.tasks.pathfinder.tables import CHECKSUMS, build_tables, checksum, tables
from lra.tasks.pathfinder.trigonometry import cosine, direction, sine

# Figures of a sample lie within this many standard errors of the truth except once in 10,000 times.
SIGMAS = 4.0

# Figure: published value, half a unit of its last digit. Integers: percentiles of pixels above 0.
FIGURES = {
    32: {
        "mean": (20.3, 0.05),
        "std": (51.3, 0.05),
        "zero": (0.657, 0.0005),
        "at least 64": (0.127, 0.0005),
        "at least 128": (0.086, 0.0005),
        "equal 255": (0.002, 0.0005),
        5: (1, 0.5),
        25: (2, 0.5),
        50: (5, 0.5),
        75: (128, 0.5),
        95: (198, 0.5),
        99: (241, 0.5),
        "placed": (1.24, 0.005),
    },
    128: {
        "mean": (7.92, 0.005),
        "std": (35.7, 0.05),
        "zero": (0.863, 0.0005),
        "at least 128": (0.030, 0.0005),
        5: (1, 0.5),
        25: (2, 0.5),
        50: (4, 0.5),
        75: (95, 0.5),
        95: (229, 0.5),
        99: (252, 0.5),
        "placed": (7.7, 0.05),
    },
}


@cache
def sample(size):
    """Return enough images for thirty batches as large as the published sample (ten at 128)."""
    return make_chunk(0, {32: 9000, 128: 800}[size], size, 14, seed=3)


def figures(images, facts):
    lit = images[images > 0]
    return {
        "mean": images.mean(),
        "std": images.std(),
        "zero": (images == 0).mean(),
        "at least 64": (images >= 64).mean(),
        "at least 128": (images >= 128).mean(),
        "equal 255": (images == 255).mean(),
        **{q: np.percentile(lit, q) for q in (5, 25, 50, 75, 95, 99)},
        "placed": facts[:, PLACED].mean(),
    }


@pytest.mark.parametrize(
    ("size", "batch"), [pytest.param(32, 300, marks=pytest.mark.slow), (128, 80)]
)
def test_pixels_have_the_published_statistics(size, batch):
    chunk = sample(size)
    starts = range(0, len(chunk.images), batch)
    batches = [figures(chunk.images[k : k + batch], chunk.facts[k : k + batch]) for k in starts]
    for name, (published, rounding) in FIGURES[size].items():
        values = np.array([figure[name] for figure in batches])
        # The published sample counts as one more such batch, and the others give the truth.
        error = values.std(ddof=1) * math.sqrt(1 + 1 / len(values))
        assert abs(values.mean() - published) < SIGMAS * error + rounding, name


@pytest.mark.parametrize(("size", "accepted", "attempts"), [(32, 1000, 322_981), (128, 80, 33_060)])
def test_as_many_attempts_fail_as_in_the_public_generator(size, accepted, attempts):
    facts = sample(size).facts
    if size == 128:
        # The margins' rates differ eightfold, so their shares in the small sample matter too.
        spread = facts[:, ATTEMPTS].std() * math.sqrt(1 / accepted + 1 / len(facts))
    else:
        spread = attempts / accepted * math.sqrt(1 / accepted + 1 / len(facts))
    assert abs(facts[:, ATTEMPTS].mean() - attempts / accepted) < SIGMAS * spread


def test_both_margins_of_path_x_are_equally_frequent_though_one_fails_eight_times_as_often():
    facts = sample(128).facts
    wide = facts[:, MARGIN] == 1
    assert abs(wide.mean() - 0.5) < SIGMAS * 0.5 / math.sqrt(len(wide))
    rates = [1 / facts[wide == flag, ATTEMPTS].mean() for flag in (False, True)]
    assert rates == pytest.approx([0.0137, 0.0017], rel=SIGMAS / math.sqrt(len(wide) / 2) + 0.03)


@pytest.mark.parametrize("size", [32, 128])
def test_labels_are_balanced_and_not_visible_in_the_mean(size):
    chunk = sample(size)
    n = len(chunk.labels)
    assert abs(chunk.labels.mean() - 0.5) < SIGMAS * 0.5 / math.sqrt(n)
    means = chunk.images.mean((1, 2))
    gap = means[chunk.labels == 1].mean() - means[chunk.labels == 0].mean()
    assert abs(gap) < SIGMAS * means.std() * 2 / math.sqrt(n)


@pytest.mark.parametrize("size", [32, 128])
def test_markers_lie_on_a_first_and_a_last_paddle_with_the_first_near_the_middle(size):
    chunk = sample(size)
    rules = RULES[size]
    first, last = chunk.ends[:, 0, 1:], chunk.ends[:, 1, 1:]
    # One tail is at most a paddle and a margin outside the central square, whose distance to the
    # border is twice the seed distance; the other tail is at the seed distance from it.
    border = np.minimum(first, size - 1 - first).min()
    assert border >= rules.seed_distance - rules.paddle_length - max(rules.margins)
    tails = chunk.targets[:, :, 0, 1:]
    apart = np.linalg.norm(tails[:, 0] - tails[:, 1], axis=1)
    assert np.abs(apart - rules.seed_distance).max() < 0.75
    # Two contours may end in the same place: neither's last paddle is tested against the other's.
    clear = (chunk.targets[:, 0, -1] != chunk.targets[:, 1, -1]).any(1)
    assert clear.mean() > 0.995
    same = (chunk.ends[:, None, 1] == chunk.targets[:, :, -1]).all(2)
    begun = (chunk.ends[:, None, 0] == chunk.targets[:, :, 0]).all(2)
    joined = (same & begun).any(1)
    np.testing.assert_array_equal(joined[clear], chunk.labels[clear] == 1)
    assert np.abs(last - size / 2).mean() > np.abs(first - size / 2).mean()
    if size == 128:
        rows = np.arange(len(first))
        for place in (first, last):
            assert (chunk.images[rows, place[:, 0], place[:, 1]] >= 250).all()


def test_the_first_seed_works_in_the_orientations_found_by_replay():
    assert (np.flatnonzero(tables(32)["tails"][0, :, 2]) - 180).tolist() == list(range(-150, -120))
    assert set(tables(32)["tails"][0, 30:60, 2:].prod(1).tolist()) == {6, 9}
    assert (tables(128)["tails"][:, :, 2] > 0).sum(1).tolist() == [354, 360]


@pytest.mark.parametrize(
    ("size", "contour_length", "distractors", "count"),
    [
        (32, 14, True, 8),
        (32, 6, True, 8),
        (32, 3, False, 8),
        (64, 6, True, 4),
        (128, 9, False, 2),
        (128, 6, True, 4),
        (256, 6, True, 2),
        pytest.param(32, 14, True, 100, marks=pytest.mark.slow),
        pytest.param(128, 14, True, 10, marks=pytest.mark.slow),
    ],
)
def test_images_equal_those_of_the_literal_algorithm_fed_the_same_draws(
    size, contour_length, distractors, count
):
    chunk = make_chunk(5, count, size, contour_length, seed=2**64 - 1, distractors=distractors)
    for place in range(count):
        image, label, attempts, placed = pathfinder_reference.draw(
            size, contour_length, 2**64 - 1, 5 + place, distractors
        )
        np.testing.assert_array_equal(chunk.images[place], image)
        facts = chunk.facts[place, [ATTEMPTS, PLACED]].tolist()
        assert (chunk.labels[place], *facts) == (label, attempts, placed)


@pytest.mark.parametrize(
    ("size", "fingerprint"),
    [
        (32, "f86db45a505918f0a4413e838f6b0838e25c1bf202a0b51dfbe11c6b561bcd8e"),
        (128, "4180e7e18aeabecee66e6a4d2d2d9816fbbab4c5a5c203a0619a2401605b0de7"),
    ],
)
def test_generated_bytes_match_the_committed_fingerprints(size, fingerprint):
    images, labels = generate(50, size, seed=1)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes())
    assert digest.hexdigest() == fingerprint


@pytest.mark.slow
def test_a_processor_without_vector_instructions_gives_the_same_bytes(tmp_path):
    program = (
        "import hashlib; from lra.tasks.pathfinder.generator import generate; "
        "print(*[hashlib.sha256(generate(30, n)[0].tobytes()).hexdigest() for n in (32, 128)])"
    )
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": tmp_path}
    environment = os.environ | {name: str(value) for name, value in plain.items()}
    digests = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert digests == [
        hashlib.sha256(generate(30, size)[0].tobytes()).hexdigest() for size in (32, 128)
    ]


@pytest.mark.parametrize(("workers", "chunk_images"), [(1, 7), (2, 7), (3, 1), (2, 101)])
def test_workers_and_chunks_do_not_change_the_bytes(workers, chunk_images):
    images, labels = generate(101, seed=4, workers=1)
    start = 0
    for first, some_images, some_labels in generate_chunks(
        101, seed=4, workers=workers, chunk_images=chunk_images
    ):
        assert first == start
        np.testing.assert_array_equal(some_images, images[start : start + len(some_images)])
        np.testing.assert_array_equal(some_labels, labels[start : start + len(some_labels)])
        start += len(some_labels)
    assert start == 101


def test_more_images_of_a_seed_begin_with_the_same_ones_and_other_seeds_differ():
    images, labels = generate(40, seed=8)
    fewer, fewer_labels = generate(17, seed=8, workers=2)
    np.testing.assert_array_equal(images[:17], fewer)
    np.testing.assert_array_equal(labels[:17], fewer_labels)
    others = generate(40, seed=9)[0]
    assert len(np.unique(np.concatenate([images, others]).reshape(80, -1), axis=0)) == 80


def test_progress_counts_every_image():
    counts = []
    images, labels = generate(2500, contour_length=6, workers=2, progress=counts.append)
    assert sum(counts) == 2500 and len(counts) > 1
    assert (images.dtype, images.shape) == (np.uint8, (2500, 32, 32))
    assert (labels.dtype, labels.shape) == (np.int64, (2500,))


def test_asking_for_no_images_is_no_error():
    images, labels = generate(0, 64)
    assert images.shape == (0, 64, 64) and labels.shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": -1}, "num_images = -1"),
        ({"size": 48}, "size = 48: choose from 32, 64, 128, 256"),
        ({"contour_length": 15}, "contour_length = 15: choose 3 to 14"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**64}, "seed = 18446744073709551616"),
        ({"workers": 0}, "workers = 0"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"num_images": 1} | options)


@pytest.mark.parametrize("size", RULES)
def test_tables_match_the_checksums_that_define_the_data(size):
    assert checksum(build_tables(size)) == CHECKSUMS[size]


def test_different_stamps_stop_the_generator(monkeypatch):
    tables.cache_clear()
    monkeypatch.setitem(CHECKSUMS, 32, "another drawing")
    with pytest.raises(RuntimeError, match="Pillow .* draws different stamps"):
        generate(1)


def test_exact_trigonometry_is_within_a_bit_of_the_library():
    rng = np.random.default_rng(0)
    for angle in rng.uniform(-2 * math.pi, 2 * math.pi, 300).tolist():
        assert abs(sine(angle) - math.sin(angle)) <= math.ulp(math.sin(angle))
        assert abs(cosine(angle) - math.cos(angle)) <= math.ulp(math.cos(angle))
    for y in range(-9, 10):
        for x in range(-9, 10):
            if (y, x) != (0, 0):
                assert abs(direction(y, x) - math.atan2(y, x)) <= math.ulp(math.atan2(y, x))


def joined_by_pixels(count, seed):
    images, labels = generate(count, 128, seed=seed, distractors=False)
    verdicts = [contour_following.marked_ends_joined(image) for image in images]
    decided = [place for place, verdict in enumerate(verdicts) if verdict is not None]
    return decided, [verdicts[k] for k in decided], labels[decided] == 1


def test_marked_ends_are_joined_by_drawn_pixels_exactly_when_the_label_says_so():
    decided, joined, labels = joined_by_pixels(200, seed=6)
    assert len(decided) > 0.75 * 200
    assert joined == labels.tolist()


@pytest.mark.slow
def test_marked_ends_are_joined_exactly_when_the_label_says_so_in_thousands_of_images():
    decided, joined, labels = joined_by_pixels(3000, seed=7)
    assert len(decided) > 0.8 * 3000
    assert joined == labels.tolist()


def test_loops_are_compiled_even_if_numba_finds_no_folder_for_its_cache():
    code = """
        from numba.core.caching import CacheImpl
        CacheImpl._locator_classes = []
        from lra.tasks.pathfinder.compiled import compiled
        from lra.tasks.pathfinder.growth import grow_images

        assert type(grow_images._cache).__name__ == "NullCache"
        assert compiled(lambda x: x + 1)(2) == 3
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True)
