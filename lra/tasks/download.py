"""One large file over HTTP, continued where an earlier attempt stopped.

What has arrived lies in `<file>.partial`; `<file>.json` beside it says of what. The file gets its
name when it is whole.
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
# Attempts in a row that bring nothing new before giving up.
ATTEMPTS = 6
# Seconds before the second attempt; every further one waits twice as long.
PAUSE = 1.0
TIMEOUT = 60.0
# A server that sends fewer bytes per second than this for so many seconds is as good as gone.
LEAST_RATE, PATIENCE = 1_000, 120.0
# Answers after which asking again may help.
TRANSIENT = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Args:
        url: Its address.
        size: Its bytes.
        validator: Changes with its content (strong ETag, else date); empty if the server has none.
    """

    url: str
    size: int
    validator: str


def _validator(headers: Any) -> str:
    etag: str = headers.get("ETag", "")
    # A weak one promises less than the same bytes.
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Send a request.

    Raises:
        DataError: The server refuses.
        OSError, http.client.HTTPException: No answer, or one after which to try again.
    """
    # Google's storage unpacks some gzip files on the way unless gzip is said to be welcome.
    request.add_header("Accept-Encoding", "gzip")
    try:
        return _answered(request)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in TRANSIENT:
            raise
        raise DataError(
            f"{request.full_url}: the server answers {error.code} {error.reason}"
        ) from error


def _answered(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Return the answer to a request, whose header must be whole in time however it drips in."""
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
        raise TimeoutError(f"no whole answer within {2 * TIMEOUT:.0f} s")
    return answers[0]


def ask(url: str) -> Remote:
    """Return what a server says of a file.

    Raises:
        DataError: It cannot be reached, refuses, or does not tell the size.
    """
    try:
        with _open(urllib.request.Request(url, method="HEAD")) as response:
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise DataError(f"{url}: the server does not tell the size")
            return Remote(url, int(length), _validator(response.headers))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url} cannot be reached from here: {error}") from error


def arrived(remote: Remote, file: Path) -> int:
    """Return how many bytes of a file lie here from an earlier attempt.

    Those of another version of it, which have no use, are deleted.
    """
    partial, note = _partial(file), _note(file)
    if not partial.exists():
        return 0
    try:
        if json.loads(note.read_text()) == asdict(remote):
            return partial.stat().st_size
        reason = "the file on the server is another one by now"
    except (OSError, ValueError):
        reason = "nothing tells what they are of"
    log.warning("%s: %s; starting from the beginning", partial, reason)
    partial.unlink()
    return 0


def download(remote: Remote, file: Path) -> None:
    """Fetch what is missing of a file.

    Args:
        remote: What `ask` returned.
        file: Where it shall lie.

    Raises:
        DataError: The server is not reached again and again, refuses, or has another file by now.
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
            # Neither bytes that were here before nor a trickle are progress, or this might never
            # end.
            failures = 0 if have > longest and reason != TRICKLE else failures + 1
            longest = max(longest, have)
            if have == remote.size:
                break
            state = f"{remote.url}: {reason} at {have:,} of {remote.size:,} bytes"
            if failures == ATTEMPTS:
                raise DataError(f"{state}, {ATTEMPTS} times; run it again to continue there")
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
    """Add what a server sends; return why it ended."""
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
            log.warning("%s: the server cannot continue; from the beginning", remote.url)
        bar.reset(remote.size)
        bar.initial = bar.n = start
        ended: list[str] = []
        # Errors of the disk are not the network's: they end it all.
        with open(partial, "ab" if start else "wb") as out:
            for chunk in _chunks(response, ended):
                out.write(chunk)
                bar.update(len(chunk))
    return ended[0]


def _start(response: http.client.HTTPResponse, remote: Remote, have: int) -> int:
    """Return at which byte an answer starts: `have`, or 0 from a server that ignores ranges."""
    headers = response.headers
    start = have if response.status == 206 else 0
    expected = f"bytes {start}-{remote.size - 1}/{remote.size}"
    if response.status == 206 and headers.get("Content-Range") != expected:
        said = headers.get("Content-Range")
        raise DataError(f"{remote.url}: the server sends {said!r}, asked was {expected!r}")
    same_length = headers.get("Content-Length") == str(remote.size - start)
    if not same_length or _validator(headers) not in ("", remote.validator):
        raise DataError(f"{remote.url}: changed while it was fetched; run it again")
    return start


TRICKLE = "the server sends next to nothing"


def _chunks(response: http.client.HTTPResponse, ended: list[str]) -> Iterator[bytes]:
    """Yield what arrives; say in `ended` why no more does."""
    started, got = time.monotonic(), 0
    try:
        # What has come, without waiting for a whole chunk.
        while chunk := response.read1(CHUNK):
            yield chunk
            got += len(chunk)
            if (passed := time.monotonic() - started) > PATIENCE:
                if got < LEAST_RATE * passed:
                    ended.append(TRICKLE)
                    return
                started, got = time.monotonic(), 0
        ended.append("the connection ended")
    except (OSError, http.client.HTTPException) as error:
        ended.append(f"the connection broke ({error})")
