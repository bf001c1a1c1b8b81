"""Parallel texts by name and languages: `numbers` is generated, the others are files (`experiments/files.py`).

Languages are en, de, fr and cs; each data set can be read in both directions.
"""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.digests import DIGESTS
from experiments.files import DataError, file, found, unpacked
from experiments.translation import generated, wmt14
from experiments.translation.pairs import Listed, Pairs, sentences

MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/"
MULTI30K_TESTS = {  # and their languages
    "test_2016_flickr": ("en", "de", "fr", "cs"),
    "test_2017_flickr": ("en", "de", "fr"),
    "test_2017_mscoco": ("en", "de", "fr"),
    "test_2018_flickr": ("en", "de", "fr", "cs"),
}
TATOEBA = "https://www.manythings.org/anki/fra-eng.zip"
HELD_OUT = 2500  # pairs of Tatoeba at most in each of valid and test
WMT = "https://www.statmt.org/wmt14/"
NEWSTESTS = (
    "news-test2008",
    "newssyscomb2009",
    *(f"newstest{year}" for year in range(2009, 2015)),
)
ISO3 = {"en": "eng", "de": "deu", "fr": "fra"}
TATOEBA_ORDER = ("en", "fr")  # in Tatoeba's lines


class Parallel(NamedTuple):
    """A data set in one direction; `train` and `valid` are empty of one that is there to test on."""

    name: str
    languages: tuple[str, str]  # source, target
    train: Pairs
    valid: Pairs
    tests: dict[str, Pairs]
    sha256: str  # of the sha256 of its files in a row, or of its text where there are none
    note: str

    @property
    def provenance(self) -> dict:
        """What a result says of its data."""
        return {"name": f"{self.name} {'-'.join(self.languages)}", "sha256": self.sha256, "note": self.note}


def parallel(name: str, source: str, target: str) -> Parallel:
    """The data set of that name. Raises DataError where it or the pair is unknown, missing with no network, or bad."""
    if name not in TEXTS:
        raise DataError(f"unknown parallel text {name!r}: known are {', '.join(TEXTS)}")
    pairs, load = TEXTS[name]
    if (source, target) not in pairs and (target, source) not in pairs:
        known = ", ".join("-".join(pair) for pair in pairs)
        raise DataError(f"{name} does not go from {source!r} to {target!r}: it has {known}, each in both directions")
    return load(source, target)


def _numbers(source: str, target: str) -> Parallel:
    """Number words and dates, generated: 10,000 to train, 500 to choose by, 1,000 to test (`generated.py`)."""
    train, valid, test = (
        Listed(generated.written(part, source), generated.written(part, target), f"numbers, its {name}")
        for name, part in generated.parts()._asdict().items()
    )
    text = "\n".join(line for part in (train, valid, test) for side in (part.source, part.target) for line in side)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Parallel("numbers", (source, target), train, valid, {"test": test}, digest, generated.NOTE)


def _multi30k(source: str, target: str) -> Parallel:
    """Captions of images (Elliott et al. 2016): 29,000 to train, 1,014 to choose by, and four sets to test."""
    tests = [name for name, languages in MULTI30K_TESTS.items() if {source, target} <= {*languages}]
    keys = []

    def read(part: str, language: str) -> list[str]:
        name = f"{part}.{language}.gz"
        keys.append(f"multi30k/{name}")
        return sentences(file("multi30k", name, MULTI30K + name), name)

    train, valid, *others = (
        Listed(read(part, source), read(part, target), f"multi30k, {part}.{source} and {part}.{target}")
        for part in ("train", "val", *tests)
    )
    note = "task 1, raw; sha256 of the files' sha256 in a row; research and education, non-commercial"
    digest = _of_digests([DIGESTS[key] for key in keys])
    return Parallel("multi30k", (source, target), train, valid, dict(zip(tests, others, strict=True)), digest, note)


def _tatoeba(source: str, target: str) -> Parallel:
    """Short sentences of tatoeba.org, 167,130 pairs in the release of 2019-04-07 (CC BY 2.0)."""
    name = "fra.txt"
    folder = found("tatoeba-eng-fra", [name]) or unpacked("Tatoeba", "tatoeba-eng-fra", {name: name}, TATOEBA)
    content = (folder / name).read_bytes()
    rows = [line.split("\t") for line in sentences(content, str(folder / name))]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise DataError(f"{folder / name}, line {number} is no English and French sentence with a tab between")
    sides = [[row[TATOEBA_ORDER.index(language)] for row in rows] for language in (source, target)]
    train, valid, test = (
        Listed([sides[0][i] for i in part], [sides[1][i] for i in part], str(folder / name), [i + 1 for i in part])
        for part in _apart([(row[0], row[1]) for row in rows])
    )
    digest, note = _verified("tatoeba-eng-fra/fra.txt", content)
    note = f"{note or 'the release of 2019-04-07'}; our own split: no sentence is in two parts; CC BY 2.0"
    return Parallel("tatoeba", (source, target), train, valid, {"test": test}, digest, note)


def _apart(rows: list[tuple[str, str]]) -> list[list[int]]:
    """The numbers of the rows for train, valid and test, drawn once and for all.

    Rows that share a sentence, in either language, go together, so that no sentence is in two parts.
    """
    root: dict[tuple[int, str], tuple[int, str]] = {}

    def find(sentence: tuple[int, str]) -> tuple[int, str]:
        while (above := root.setdefault(sentence, sentence)) != sentence:
            root[sentence] = sentence = root[above]  # halves the way for the next
        return sentence

    for english, french in rows:
        root[find((0, english))] = find((1, french))
    groups = defaultdict(list)
    for number, (english, _) in enumerate(rows):
        groups[find((0, english))].append(number)
    together = list(groups.values())
    limit = min(HELD_OUT, len(rows) // 20)
    train, valid, test = [], [], []
    for at in np.random.Generator(np.random.PCG64(0)).permutation(len(together)):
        group = together[at]
        part = next((part for part in (test, valid) if len(part) + len(group) <= limit), train)
        part += group
    return [sorted(part) for part in (train, valid, test)]


def _newstest(source: str, target: str) -> Parallel:
    """The test sets of WMT from 2008 to 2014, 502 to 3,003 sentences of news (research)."""
    folder = f"{ISO3['en']}-{ISO3[target if source == 'en' else source]}"
    names = {
        (test, language): f"{folder}/{test}.{ISO3[language]}" for test in NEWSTESTS for language in (source, target)
    }
    place = found("wmt-newstest", names.values()) or _official_newstests(names)
    contents = {key: (place / name).read_bytes() for key, name in names.items()}
    tests, digests, notes = {}, [], []
    for test in NEWSTESTS:
        sides = []
        for language in (source, target):
            name, content = names[test, language], contents[test, language]
            digest, note = _verified(f"wmt-newstest/{name}", content)
            digests.append(digest)
            notes += [note] * bool(note)
            sides.append(sentences(content, str(place / name)))
        tests[test] = Listed(sides[0], sides[1], f"{place / names[test, source]} and {names[test, target]}")
    nothing = Listed([], [], "newstest, which has nothing to train on")
    note = notes[0] if notes else "one sentence a line, from a copy and not the official SGML"
    note += "; sha256 of the files' sha256 in a row"
    return Parallel("newstest", (source, target), nothing, nothing, tests, _of_digests(digests), note)


def _official_newstests(names: dict[tuple[str, str], str]) -> Path:
    """Of 2014, SGML and an archive of its own; the other language is named before English, whichever is the source."""
    other = next(language for _, language in names if language != "en")
    old = {name: f"dev/{test}.{language}" for (test, language), name in names.items() if test != "newstest2014"}
    new = {
        name: f"newstest2014-{other}en-{'src' if language == 'en' else 'ref'}.{language}.sgm"
        for (test, language), name in names.items()
        if test == "newstest2014"
    }
    unpacked("newstest 2008 to 2013", "wmt-newstest", old, WMT + "dev.tgz")
    return unpacked("newstest 2014", "wmt-newstest", new, WMT + "test-full.tgz")


def _wmt14(source: str, target: str) -> Parallel:
    """WMT'14: all its parallel texts to train on, read where they lie; newstest2013 to choose by, 2014 to test."""
    train, digests = wmt14.training(source, target)
    news = _newstest(source, target)
    note = (
        f"every parallel text of WMT'14, no official digests: those of the first use are kept and compared since; "
        f"sha256 of all in a row; newstest: {news.note}"
    )
    return Parallel(
        "wmt14",
        (source, target),
        train,
        news.tests["newstest2013"],
        {"newstest2014": news.tests["newstest2014"]},
        _of_digests([*digests, news.sha256]),
        note,
    )


def _verified(key: str, content: bytes) -> tuple[str, str]:
    """The sha256 of a file that may be another release than ours, and where it is, what to say; it also warns."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == DIGESTS[key]:
        return digest, ""
    warnings.warn(f"{key} has the sha256 {digest}: another release than {DIGESTS[key]}", stacklevel=4)
    return digest, "another release than the one that we know, not verified"


def _of_digests(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


WITH_ENGLISH = (("en", "de"), ("en", "fr"))
TEXTS: dict[str, tuple[tuple[tuple[str, str], ...], Callable[[str, str], Parallel]]] = {
    "numbers": ((*WITH_ENGLISH, ("de", "fr")), _numbers),
    "multi30k": (tuple(combinations(("en", "de", "fr", "cs"), 2)), _multi30k),
    "tatoeba": ((("en", "fr"),), _tatoeba),
    "newstest": (WITH_ENGLISH, _newstest),
    "wmt14": (WITH_ENGLISH, _wmt14),
}
