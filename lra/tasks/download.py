"""Download one large file over HTTP, continuing where an earlier attempt stopped.

Received bytes are kept in `<file>.partial`, and `<file>.json` beside it says which file they belong
to. The file gets its final name once it is complete.
"""

import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lra.bar import progress_bar
from lra.tasks import DataError

log = logging.getLogger(__name__)

CHUNK = 2**20
# Consecutive attempts without new bytes before giving up.
ATTEMPTS = 6
# Seconds before the second attempt; the wait doubles with every further one.
PAUSE = 1.0
TIMEOUT = 60.0
# A server that sends fewer bytes per second than this for this many seconds counts as gone.
MIN_RATE, PATIENCE = 1_000, 120.0
# Status codes after which a retry may help.
TRANSIENT = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Args:
        url: Its address.
        size: Its size in bytes.
        validator: Changes with its content (strong ETag, else date); empty if the server has none.
    """

    url: str
    size: int
    validator: str


def _validator(headers: Any) -> str:
    etag: str = headers.get("ETag", "")
    # A weak ETag promises less than identical bytes.
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Send a request.

    Raises:
        DataError: The server refuses.
        OSError, http.client.HTTPException: There is no answer, or one that calls for a retry.
    """
    # Google's storage unpacks some gzip files in transit unless the request accepts gzip.
    request.add_header("Accept-Encoding", "gzip")
    try:
        return _answered(request)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in TRANSIENT:
            raise
        raise DataError(
            f"{request.full_url}: the server answered {error.code} {error.reason}"
        ) from error


def _answered(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Return the answer to a request, whose header must arrive in time even if it trickles in."""
    answers: list[http.client.HTTPResponse] = []
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            answers.append(urllib.request.urlopen(request, timeout=TIMEOUT))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    thread.join(2 * TIMEOUT)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no complete answer within {2 * TIMEOUT:.0f} s")
    return answers[0]


def ask(url: str) -> Remote:
    """Return what a server says about a file.

    Raises:
        DataError: The server cannot be reached, refuses, or does not report the size.
    """
    try:
        with _open(urllib.request.Request(url, method="HEAD")) as response:
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise DataError(f"{url}: the server does not report the size")
            return Remote(url, int(length), _validator(response.headers))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url} cannot be reached from here: {error}") from error


def arrived(remote: Remote, file: Path) -> int:
    """Return how many bytes of a file are here from an earlier attempt.

    Bytes of another version of the file are useless and therefore deleted.
    """
    partial, note = _partial(file), _note(file)
    if not partial.exists():
        return 0
    try:
        if json.loads(note.read_text()) == asdict(remote):
            return partial.stat().st_size
        reason = "the file on the server has changed since"
    except (OSError, ValueError):
        reason = "it is unknown which file its bytes belong to"
    log.warning("%s: %s; starting from the beginning", partial, reason)
    partial.unlink()
    return 0


def download(remote: Remote, file: Path) -> None:
    """Fetch the missing bytes of a file.

    Args:
        remote: The result of `ask`.
        file: Path of the finished file.

    Raises:
        DataError: The server is repeatedly unreachable, refuses, or has a different file by now.
    """
    partial = _partial(file)
    longest = have = arrived(remote, file)
    _note(file).write_text(json.dumps(asdict(remote)))
    failures = 0
    bar = progress_bar(None, file.name, remote.size, unit="B", unit_scale=True)
    with bar:
        while have < remote.size:
            reason = _append(remote, partial, have, bar)
            have = partial.stat().st_size if partial.exists() else 0
            # Neither bytes that were already here nor a trickle count as progress; otherwise this
            # might never end.
            failures = 0 if have > longest and reason != TRICKLE else failures + 1
            longest = max(longest, have)
            if have == remote.size:
                break
            state = f"{remote.url}: {reason} at {have:,} of {remote.size:,} bytes"
            if failures == ATTEMPTS:
                raise DataError(f"{state}, {ATTEMPTS} times; run it again to continue from there")
            log.warning("%s; trying again", state)
            time.sleep(PAUSE * 2**failures)
    if have > remote.size:
        raise DataError(f"{partial}: {have:,} bytes, should be {remote.size:,}; delete it")
    os.replace(partial, file)
    _note(file).unlink()


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial")


def _note(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _append(remote: Remote, partial: Path, have: int, bar: Any) -> str:
    """Append the bytes that a server sends; return why they ended."""
    request = urllib.request.Request(remote.url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if remote.validator:
            request.add_header("If-Range", remote.validator)
    try:
        response = _open(request)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error})"
    with response:
        start = _start(response, remote, have)
        if start < have:
            log.warning("%s: the server cannot continue; starting from the beginning", remote.url)
        bar.reset(remote.size)
        bar.initial = bar.n = start
        ended: list[str] = []
        # Unlike network errors, disk errors end the download.
        with open(partial, "ab" if start else "wb") as out:
            for chunk in _chunks(response, ended):
                out.write(chunk)
                bar.update(len(chunk))
    return ended[0]


def _start(response: http.client.HTTPResponse, remote: Remote, have: int) -> int:
    """Return the byte at which an answer starts: `have`, or 0 if the server ignores ranges."""
    headers = response.headers
    start = have if response.status == 206 else 0
    expected = f"bytes {start}-{remote.size - 1}/{remote.size}"
    if response.status == 206 and headers.get("Content-Range") != expected:
        actual = headers.get("Content-Range")
        raise DataError(f"{remote.url}: the server sends {actual!r} instead of {expected!r}")
    same_length = headers.get("Content-Length") == str(remote.size - start)
    if not same_length or _validator(headers) not in ("", remote.validator):
        raise DataError(f"{remote.url}: changed while it was fetched; run it again")
    return start


TRICKLE = "the server sends next to nothing"


def _chunks(response: http.client.HTTPResponse, ended: list[str]) -> Iterator[bytes]:
    """Yield what arrives, and append to `ended` why no more does."""
    started, got = time.monotonic(), 0
    try:
        # Returns what has arrived, without waiting for a whole chunk.
        while chunk := response.read1(CHUNK):
            yield chunk
            got += len(chunk)
            if (passed := time.monotonic() - started) > PATIENCE:
                if got < MIN_RATE * passed:
                    ended.append(TRICKLE)
                    return
                started, got = time.monotonic(), 0
        ended.append("the connection ended")
    except (OSError, http.client.HTTPException) as error:
        ended.append(f"the connection broke ({error})")
