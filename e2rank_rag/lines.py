"""Text files read line by line, plain or gzip (by the name ending in `.gz`), as bytes.

Lines stay bytes for two reasons: a line that is not UTF-8 is one bad line, not the end of the file;
and only `\\n` ends a line, because a text may hold U+2028 and the like.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

LINE_BYTES = 32 << 20
"""The longest line that is read; a Qdrant server takes no larger request."""

FILE_BYTES = 16 << 20
"""The largest file that is read at once, in bytes."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHUNK = 1 << 20


def read_lines(
    path: str | Path, *, on_long: Callable[[int, str], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1, without line ends and a leading BOM.

    on_long: called with the number of a line of more than `LINE_BYTES` bytes and a reason; the line
        is left out, and is never in memory as a whole.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: the name ends in `.gz` and the data are not complete gzip data; a line is too
            long and `on_long` is None.
    """
    number = 0
    with _open(path) as stream:
        try:
            while raw := stream.readline(LINE_BYTES + 1):
                number += 1
                if len(raw) > LINE_BYTES:
                    if on_long is None:
                        raise ValueError(f"{path}, line {number}: {_too_long()}")
                    on_long(number, _too_long())
                    while raw and not raw.endswith(b"\n"):
                        raw = stream.readline(_CHUNK)
                    continue
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, number, error) from error


def read_raw_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """All lines of a plain file, unchanged, with their line ends, numbered from 1.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: a line has more than `LINE_BYTES` bytes.
    """
    with open(path, "rb") as stream:
        for number, line in enumerate(iter(partial(stream.readline, LINE_BYTES + 1), b""), start=1):
            if len(line) > LINE_BYTES:
                raise ValueError(f"{path}, line {number}: {_too_long()}")
            yield number, line


def read_text(path: str | Path) -> str:
    """The text of a small UTF-8 file, such as settings or a model's recipe.

    Raises:
        OSError: the file is not there or cannot be read.
        ValueError: it has more than `FILE_BYTES` bytes, or is not UTF-8.
    """
    with open(path, "rb") as stream:
        data = stream.read(FILE_BYTES + 1)
    if len(data) > FILE_BYTES:
        raise ValueError(f"{path} has more than {FILE_BYTES:,} bytes, the limit; name another file")
    return data.decode("utf-8")


def count_lines(path: str | Path) -> int:
    """Number of lines, blank ones included: the total of a progress bar, not a count of records."""
    lines = 0
    last = b"\n"
    with _open(path) as stream:
        try:
            while chunk := stream.read(_CHUNK):
                lines += chunk.count(b"\n")
                last = chunk[-1:]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, lines, error) from error
    return lines + (last != b"\n")


class FileState(NamedTuple):
    """Differs after a file was written, truncated or replaced. Times are in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


def file_state(path: str | Path) -> FileState | None:
    """The state of a file; None for a pipe or a device, which can be read only once.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    # A network file system asks its server when a file is opened; a stat alone may be cached.
    with open(path, "rb") as stream:
        state = os.fstat(stream.fileno())
    return FileState(
        state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
    )


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file, as gzip if its name ends in `.gz`; the same data give the same bytes."""
    target = Path(path)
    # By default a gzip header holds a time and a file name.
    target.write_bytes(gzip.compress(data, 9, mtime=0) if target.suffix == ".gz" else data)


def decode(line: bytes) -> str:
    """The line as text; a `ValueError` names the first byte that is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
        ) from error


def _open(path: str | Path) -> BinaryIO:
    if Path(path).suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


def _too_long() -> str:
    return f"more than {LINE_BYTES:,} bytes, the limit of a line; split its text"


def _damaged(path: str | Path, line: int, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: no whole gzip data after line {line} ({error}); "
        "fetch the file again, or drop .gz from its name if it is plain text"
    )
