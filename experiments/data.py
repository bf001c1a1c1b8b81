"""Images and texts by name: embedded, or from files that are looked for, downloaded and checked (`files.py`)."""

import hashlib
import platform
import warnings
from typing import NamedTuple

import numpy as np

from experiments.digests import DIGESTS
from experiments.files import DataError, file, found, unpacked


class Images(NamedTuple):
    """Images and their classes [N], int32; `sha256` is of the unpacked content.

    Of `images` they are grey, [N, P, P], float32 in 0..1; of `maps` [N, P, P, C], uint8.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    sha256: str
    note: str

    @property
    def provenance(self) -> dict:
        """What a result says of its data."""
        return {"name": self.name, "sha256": self.sha256, "note": self.note}


class Text(NamedTuple):
    """The bytes of a text, in three parts; `sha256` is of all of them."""

    name: str
    train: bytes
    valid: bytes
    test: bytes
    sha256: str
    note: str

    @property
    def provenance(self) -> dict:
        """What a result says of its data."""
        return {"name": self.name, "sha256": self.sha256, "note": self.note}


SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_FOLDER = "cifar-10-batches-bin"
CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: the class, then red, green and blue, row by row
CIFAR_RECORDS = 10_000  # of each file
CIFAR_COPIES = {  # sha256 of the six files in a row
    "49f0d5a5f581bf81bbb7d2883b092ba31defe642d07fe5569fe86e8358bf17ec": "98 of 60,000 images are JPEG-decoded",
}
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"


def images(name: str) -> Images:
    """The data set of that name. Raises DataError where it is unknown, missing with no network, or corrupt."""
    if name not in LOADERS:
        raise DataError(f"unknown data set {name!r}: known are {', '.join(LOADERS)}")
    return LOADERS[name]()


def _digits() -> Images:
    """scikit-learn's handwritten digits: 1,797 of 8 x 8, split once and for all, 1,437 to train and 360 to test."""
    from sklearn.datasets import load_digits  # slow to import, and not needed for other data

    pixels, classes = load_digits(return_X_y=True)
    x, y = np.asarray(pixels, np.float32).reshape(-1, 8, 8) / 16, np.asarray(classes, np.int32)
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(x))
    train, test = order[:1437], order[1437:]
    return Images("digits", x[train], y[train], x[test], y[test], digest, "scikit-learn's copy of UCI optdigits, 8x8")


def _mnist() -> Images:
    """The 60,000 and 10,000 handwritten digits of 28 x 28 (CC BY-SA 3.0)."""
    names = [key.removeprefix("mnist/") for key in DIGESTS if key.startswith("mnist/")]
    train_x, train_y, test_x, test_y = (_idx(file("mnist", name, MNIST + name)) for name in names)
    return Images(
        "mnist",
        train_x.astype(np.float32) / 255,
        train_y.astype(np.int32),
        test_x.astype(np.float32) / 255,
        test_y.astype(np.int32),
        hashlib.sha256("".join(DIGESTS[f"mnist/{name}"] for name in names).encode()).hexdigest(),
        "sha256 of the four files' sha256 in a row",
    )


LOADERS = {"digits": _digits, "mnist": _mnist}


def maps(name: str) -> Images:
    """The data set of that name as maps [N, P, P, C], uint8. Raises DataError as `images` does."""
    if name == "cifar10":
        return _cifar10()
    if name not in LOADERS:
        raise DataError(f"unknown data set {name!r}: known are cifar10, {', '.join(LOADERS)}")
    grey = LOADERS[name]()

    def bytes_of(x: np.ndarray) -> np.ndarray:
        return np.round(255 * x).astype(np.uint8)[..., None]

    return grey._replace(train_x=bytes_of(grey.train_x), test_x=bytes_of(grey.test_x))


def _cifar10() -> Images:
    """CIFAR-10 (Krizhevsky 2009), its binary version: 50,000 and 10,000 colour images of 32 x 32, of 10 classes."""
    members = {name: name for name in CIFAR_FILES}
    folder = found(CIFAR_FOLDER, CIFAR_FILES) or unpacked("CIFAR-10", CIFAR_FOLDER, members, CIFAR)
    records = []
    for name in CIFAR_FILES:
        content = (folder / name).read_bytes()
        if len(content) != CIFAR_RECORDS * CIFAR_RECORD:
            raise DataError(
                f"{folder / name} has {len(content)} bytes, expected {CIFAR_RECORDS} of {CIFAR_RECORD}: delete the "
                f"folder to have it downloaded from {CIFAR}"
            )
        records.append(np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD))
    digest = hashlib.sha256(b"".join(part.tobytes() for part in records)).hexdigest()
    if digest not in CIFAR_COPIES:
        warnings.warn(f"CIFAR-10 in {folder} has the sha256 {digest}, which nobody has verified", stacklevel=3)
    table = np.concatenate(records)
    x, y = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), table[:, 0].astype(np.int32)
    note = CIFAR_COPIES.get(digest, "sha256 of the six files in a row, not verified")
    test = len(x) - CIFAR_RECORDS
    return Images("cifar10", x[:test], y[:test], x[test:], y[test:], digest, note)


def text(name: str) -> Text:
    """The text of that name. Raises DataError where it is unknown, missing with no network, or corrupt."""
    if name not in TEXTS:
        raise DataError(f"unknown text {name!r}: known are {', '.join(TEXTS)}")
    return TEXTS[name]()


def _manual() -> Text:
    """Python's own manual, as this interpreter has it: the topics that `help()` shows, in alphabetical order."""
    from pydoc_data.topics import topics

    content = "\n".join(topics[name] for name in sorted(topics)).encode()
    return _divided("manual", content, f"pydoc_data.topics of Python {platform.python_version()}")


def _shakespeare() -> Text:
    """1,115,394 bytes of Shakespeare's plays (Karpathy 2015)."""
    return _divided("shakespeare", file("tinyshakespeare", "input.txt", SHAKESPEARE + "input.txt"), "tiny Shakespeare")


def _divided(name: str, content: bytes, note: str) -> Text:
    """The first 90% to train on, then 5% each to choose by and to test on."""
    cuts = len(content) * 90 // 100, len(content) * 95 // 100
    digest = hashlib.sha256(content).hexdigest()
    return Text(name, content[: cuts[0]], content[cuts[0] : cuts[1]], content[cuts[1] :], digest, note)


def _wikitext() -> Text:
    """WikiText-2 (Merity et al. 2016), its words as they stand, as bytes (CC BY-SA)."""
    parts = [file("wikitext-2", f"{part}.txt", f"{WIKITEXT}{part}.txt") for part in ("train", "valid", "test")]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    return Text("wikitext-2", parts[0], parts[1], parts[2], digest, "sha256 of train, valid and test in a row")


TEXTS = {"manual": _manual, "shakespeare": _shakespeare, "wikitext-2": _wikitext}


def _idx(content: bytes) -> np.ndarray:
    """An array of bytes in the idx format: two zeros, the type 8, the number of axes, their sizes, the bytes."""
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
