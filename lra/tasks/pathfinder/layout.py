"""Define the layout of the lookup tables for growing and drawing Pathfinder images.

A paddle has one of finitely many orientations: 360 whole degrees for the first one of a contour
(index degree + 180), then one for each pixel of a small circle (index 360 + candidate). Steps,
weights and drawn stamps can therefore be tabulated. S stands for stamps, W for their side.
"""

import numpy as np

DEGREES = 360

# Space for the largest settings, so that the compiled code is the same for all.
CANDIDATES = 49
CHOICES = 16
STAMPS = 80
WIDTH = 21
HALO_WIDTH = 27
ROW = 32
KERNEL = 43
MARKER_CLASSES = 27
MARKER_WIDTH = 19

# One record holds all tables of an image size and margin, so compiled code passes one pointer.
# O = 360 + CANDIDATES orientations; unused space is 0.
TABLES = np.dtype(
    [
        # The image is in flat arrays with rows of length stride, pad rows and columns from their
        # beginning; the outermost padding pixels are closed to paddles.
        ("size", np.int64),
        ("pad", np.int64),
        ("stride", np.int64),
        ("padding", np.int64),
        # The side of stamps is 2 reach + 1, that of halos 2 (reach + margin) + 1.
        ("reach", np.int64),
        ("margin", np.int64),
        # Compiled loops read and write this many columns of a stamp, half or all of ROW, which are
        # whole vector registers. Columns beyond the stamp's own change nothing.
        ("row", np.int64),
        # Offset (y, x) from one pivot to the next, by the last orientation.
        ("step", np.float64, (DEGREES + CANDIDATES, 2)),
        # Offset of a candidate head from the pivot.
        ("candidate", np.int64, (CANDIDATES, 2)),
        # Candidates that can follow an orientation, by rows and columns; their offsets in the
        # flat arrays and their weights.
        ("num_choices", np.int64, DEGREES + CANDIDATES),
        ("choice", np.int64, (DEGREES + CANDIDATES, CHOICES)),
        ("offset", np.int64, (DEGREES + CANDIDATES, CHOICES)),
        ("weight", np.float64, (DEGREES + CANDIDATES, CHOICES)),
        # Free share of a pixel, by its byte in the halo.
        ("free", np.float64, 256),
        # Index of an orientation's stamp, which is centred on the tail of a first paddle and on the
        # head of any other.
        ("stamp_of", np.int64, DEGREES + CANDIDATES),
        # The drawn paddle; what it occupies; the greatest occupancy that it does not collide with;
        # and what it occupies, dilated by the margin.
        ("line", np.uint8, (STAMPS, WIDTH, WIDTH)),
        ("mask", np.uint8, (STAMPS, WIDTH, ROW)),
        ("limit", np.uint8, (STAMPS, WIDTH, ROW)),
        ("halo", np.uint8, (STAMPS, HALO_WIDTH, ROW)),
        # First row and end of the relevant part of a stamp's mask, limit and halo.
        ("mask_rows", np.int64, (STAMPS, 2)),
        ("limit_rows", np.int64, (STAMPS, 2)),
        ("halo_rows", np.int64, (STAMPS, 2)),
        # Offsets of a first paddle's head from its tail, of its pivot from its head, and of the
        # second contour's tail from the first's, by degree, from -180 on; the last, from 0 on.
        ("seed_head", np.float64, (DEGREES, 2)),
        ("seed_pivot", np.float64, (DEGREES, 2)),
        ("neighbour", np.float64, (DEGREES, 2)),
        # The first contour's tails form a rectangle: first row, first column, rows, columns.
        ("tails", np.int64, (DEGREES, 4)),
        # Whether a distractor can begin at a degree, and the pixels that its first paddle counts as
        # covering; none of them may have first_blocked or more.
        ("usable", np.uint8, DEGREES),
        ("kernel_size", np.int64, DEGREES),
        ("kernel", np.int64, (DEGREES, KERNEL, 2)),
        ("first_blocked", np.int64),
        # Value of a byte in the image, for a contour, a distractor and a marker.
        ("target_value", np.float64, 256),
        ("distractor_value", np.float64, 256),
        ("marker_value", np.float64, 256),
        # Markers by the classes of y and x; see draw_markers.
        ("marker_radius", np.int64),
        ("marker_border", np.int64),
        ("marker", np.uint8, (MARKER_CLASSES, MARKER_CLASSES, MARKER_WIDTH, MARKER_WIDTH)),
    ],
    align=True,
)
