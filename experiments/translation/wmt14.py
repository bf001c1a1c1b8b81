"""WMT'14's parallel texts, English with German (4.5M pairs) and French (40M, 15 GB), never whole in memory.

Each line is read where it lies, by an index of the lines' beginnings that is made once and memory-mapped. No official
digests are known: those of the first use are kept beside the files and compared whenever a file has changed.
Sutskever et al. 2014 trained on 12M selected pairs of English and French of these texts.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.digests import DIGESTS
from experiments.files import DataError, cache, found, unpacked
from experiments.translation.pairs import Joined, Lazy, Listed, not_utf8

STATMT = "https://www.statmt.org/"
CHUNK = 1 << 24  # bytes read at once where an index is made


class Corpus(NamedTuple):
    """An archive, and the member of it in a language: {pair} is de-en or fr-en, {language} en, de or fr."""

    archive: str
    member: str
    others: tuple[str, ...] = ("de", "fr")  # the languages beside English


CORPORA = (
    Corpus("wmt13/training-parallel-europarl-v7.tgz", "europarl-v7.{pair}.{language}"),
    Corpus("wmt13/training-parallel-commoncrawl.tgz", "commoncrawl.{pair}.{language}"),
    Corpus("wmt14/training-parallel-nc-v9.tgz", "news-commentary-v9.{pair}.{language}"),
    Corpus("wmt13/training-parallel-un.tgz", "undoc.2000.{pair}.{language}", ("fr",)),
    Corpus("wmt10/training-giga-fren.tar", "giga-fren.release2.fixed.{language}.gz", ("fr",)),
)


def training(source: str, target: str) -> tuple[Joined, list[str]]:
    """All of it in one direction, and the sha256 of its files. Raises DataError as `unpacked` and `Lines` do.

    Some lines are empty and some are very long: `encoded` and `stored` leave such pairs out and count them.
    """
    other = target if source == "en" else source
    parts, digests = [], []
    for corpus in CORPORA:
        if other not in corpus.others:
            continue
        members = [corpus.member.format(pair=f"{other}-en", language=language) for language in (source, target)]
        files = {member.removesuffix(".gz"): member for member in members}
        url = STATMT + corpus.archive
        folder = found("wmt14", files) or unpacked(f"A part of WMT'14, {url},", "wmt14", files, url)
        sides = [Lines(folder / name) for name in files]
        parts.append(Listed(sides[0], sides[1], " and ".join(str(side.path) for side in sides)))
        digests += [side.sha256 for side in sides]
    return Joined(tuple(parts)), digests


class Lines(Lazy[str]):
    """The lines of a file of any size, by random access; `sha256` is the file's.

    Beside the file, or in the user's cache where that is not allowed, lie the index and the digest of the first use.
    Raises DataError for a file that has changed since, for an empty one, and where a line that is read is not UTF-8.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.stat().st_size:
            raise DataError(f"{path} is empty; delete it to have it downloaded")
        starts, self.sha256 = _index(path)
        # asarray: a plain view of the map, which is faster to cut
        self._starts = np.asarray(np.memmap(starts, "<i8", "r"))
        self._bytes = np.asarray(np.memmap(path, np.uint8, "r"))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def at(self, index: int) -> str:
        line = self._bytes[self._starts[index] : self._starts[index + 1]].tobytes()
        try:
            return line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise not_utf8(str(self.path), index + 1, error) from error


def _index(path: Path) -> tuple[Path, str]:
    """The file of the beginnings of the lines, and the end of the last: int64 [lines + 1]; and the file's sha256."""
    folder = path.parent
    if not os.access(folder, os.W_OK):
        folder = cache() / "lines" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
    told, starts = folder / f"{path.name}.sha256.json", folder / f"{path.name}.lines"
    known = json.loads(told.read_text()) if told.exists() else {}
    now = {"size": path.stat().st_size, "modified": path.stat().st_mtime_ns}
    if starts.exists() and now.items() <= known.items():
        return starts, known["sha256"]
    with tempfile.TemporaryDirectory(prefix=".part", dir=folder) as part:
        digest = _read_through(path, Path(part) / "lines")
        expected = DIGESTS.get(f"wmt14/{path.name}") or known.get("sha256") or digest
        if digest != expected:
            raise DataError(
                f"{path} has the sha256 {digest}; at its first use it had {expected}: put that file back, or delete "
                f"{told} to take this one for good"
            )
        (Path(part) / "told").write_text(json.dumps({"sha256": digest, **now}) + "\n")
        (Path(part) / "lines").replace(starts)
        (Path(part) / "told").replace(told)
    return starts, digest


def _read_through(path: Path, starts: Path) -> str:
    digest, content = hashlib.sha256(), np.memmap(path, np.uint8, "r")
    with starts.open("wb") as out:
        np.zeros(1, "<i8").tofile(out)
        for begin in range(0, len(content), CHUNK):
            chunk = content[begin : begin + CHUNK]
            digest.update(chunk.data)
            (begin + 1 + np.flatnonzero(chunk == ord("\n"))).astype("<i8").tofile(out)
        if content[-1] != ord("\n"):
            np.array([len(content)], "<i8").tofile(out)
    return digest.hexdigest()
