"""Files by name: looked for in $LSTM_ROT_DATA, then in the user's cache, then downloaded from their official address.

What comes back is checked against the sha256 of its unpacked content (`digests.py`). Nothing is ever unpickled.
"""

import gzip
import hashlib
import html
import http.client
import io
import os
import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from platformdirs import user_cache_path
from rich.progress import wrap_file

from experiments.digests import DIGESTS


class DataError(Exception):
    """A data file is missing or not what it should be; the message says which, from where, and its digest."""


OFFLINE = (urllib.error.URLError, http.client.HTTPException, OSError)
NO_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, KeyError, EOFError, UnicodeError, zlib.error, gzip.BadGzipFile)


def file(folder: str, name: str, url: str) -> bytes:
    """The content of one file, unpacked if it is gzipped, checked."""
    key, tried = f"{folder}/{name}", places()
    for place in tried:
        path = place / folder / name
        if path.is_file():
            return _checked(path.read_bytes(), str(path), key, remedy=f"delete it to have it downloaded from {url}")
    target = cache() / folder / name
    packed = io.BytesIO()
    try:
        _download(url, packed)
    except OFFLINE as error:
        raise DataError(
            f"{name} of {folder} is missing and could not be downloaded ({error}): put the file from {url} at "
            f"{' or '.join(str(place / key) for place in tried)}; the sha256 of its unpacked content is {DIGESTS[key]}"
        ) from error
    remedy = f"it was not kept; try again, or put a good copy at {target}"
    content = _checked(packed.getvalue(), url, key, remedy=remedy)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".part{os.getpid()}")
        part.write_bytes(packed.getvalue())
        part.replace(target)
    except OSError as error:
        warnings.warn(f"{name} is good but could not be kept at {target}: {error}", stacklevel=2)
    return content


def cache() -> Path:
    """The user's cache, where what is downloaded is kept."""
    return user_cache_path("lstm_rot")


def places() -> list[Path]:
    """Where data may lie, in the order in which it is looked for."""
    return [Path(root) for root in (os.environ.get("LSTM_ROT_DATA"), cache()) if root]


def found(folder: str, names: Iterable[str]) -> Path | None:
    """The first place where all files of the folder lie."""
    names = list(names)
    for place in places():
        if all((place / folder / name).is_file() for name in names):
            return place / folder
    return None


def unpacked(what: str, folder: str, members: Mapping[str, str], url: str) -> Path:
    """The folder, in the user's cache, with files {name: the archive's member}: downloaded and unpacked, all or none.

    A member is given with the end of its path. One that is gzipped is unpacked too, and of SGML (.sgm) its segments are
    kept, one a line. The archive goes through the disk, so it may be of any size. Raises DataError with no network,
    naming the files to put there, and for another archive than expected.
    """
    target = cache() / folder
    try:
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part", dir=cache()) as part:
            with (Path(part) / "archive").open("wb") as out:
                _download(url, out)
            written = _extracted(Path(part), members, url)
            for name, path in written.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                path.replace(target / name)
    except NO_ARCHIVE as error:
        raise DataError(f"{url} is not the archive expected ({error!r}); it was not kept: try again") from error
    except OFFLINE as error:
        tried = " or ".join(str(place / folder) for place in places())
        raise DataError(
            f"{what} is missing and could not be downloaded ({error}): unpack {url} so that "
            f"{', '.join(members)} lie in {tried}"
        ) from error
    return target


def _extracted(part: Path, members: Mapping[str, str], url: str) -> dict[str, Path]:
    """The files {name: path}, written into `part` from the archive that lies there."""
    wanted = {member: part / str(number) for number, member in enumerate(members.values())}

    def take(path: str, opened: Callable[[], IO[bytes] | None]) -> None:
        for member, target in wanted.items():
            if f"/{path}".endswith(f"/{member}") and (stream := opened()):
                with stream:
                    _write(member, stream, target)

    if url.endswith(".zip"):
        with zipfile.ZipFile(part / "archive") as archive:
            for path in archive.namelist():
                take(path, partial(archive.open, path))
    else:
        with tarfile.open(part / "archive") as archive:
            for entry in archive:  # in order, for a large gzipped one can not be searched
                take(entry.name, partial(archive.extractfile, entry))
    if missing := [member for member, target in wanted.items() if not target.exists()]:
        raise KeyError(", ".join(missing))
    return {name: wanted[member] for name, member in members.items()}


def _write(member: str, stream: IO[bytes], target: Path) -> None:
    with target.open("wb") as out:
        if member.endswith(".sgm"):
            segments = re.findall(r"<seg[^>]*>(.*?)</seg>", stream.read().decode(), re.DOTALL)
            out.writelines(" ".join(html.unescape(segment).split()).encode() + b"\n" for segment in segments)
        else:
            shutil.copyfileobj(gzip.GzipFile(fileobj=stream) if member.endswith(".gz") else stream, out, 1 << 20)


def _download(url: str, out: IO[bytes]) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "lstm_rot"})  # some servers refuse Python's own
    with urllib.request.urlopen(request, timeout=30) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with wrap_file(response, total=size, description=url.rsplit("/", 1)[-1]) as stream:
            shutil.copyfileobj(stream, out, 1 << 20)


def _checked(packed: bytes, origin: str, key: str, *, remedy: str) -> bytes:
    try:
        content = gzip.decompress(packed) if key.endswith(".gz") else packed
    except (OSError, EOFError, zlib.error) as error:
        expected = f"sha256 of the unpacked content expected: {DIGESTS[key]}"
        raise DataError(f"{origin} is no whole gzip file ({error}; {expected}): {remedy}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != DIGESTS[key]:
        raise DataError(f"{origin} is corrupt: its unpacked sha256 is {digest}, expected {DIGESTS[key]}: {remedy}")
    return content
