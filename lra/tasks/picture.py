"""Pictures from files that may be damaged, or made to harm."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# What Pillow raises where a picture is damaged, or larger than anyone could mean.
FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    zlib.error,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Open a picture; its pixels are read when they are asked for.

    Args:
        content: The file.

    Raises:
        ValueError: It is none, is damaged, or claims to be huge; while it is opened or read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                yield picture
    except FAULTS as error:
        raise ValueError(f"not a readable image ({error})") from error
