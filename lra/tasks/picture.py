"""Read pictures from files that may be damaged or malicious."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# Errors that Pillow raises if a picture is damaged or implausibly large.
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
    """Open a picture; its pixels are read on access.

    Args:
        content: The content of the file.

    Raises:
        ValueError: It is not a picture, is damaged or claims to be huge; on opening or reading.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                yield picture
    except FAULTS as error:
        raise ValueError(f"not a readable image ({error})") from error
