"""Vocabularies: text to numbers and back, made from the sentences to train on and kept with the checkpoint.

The first four numbers are the same in each: PAD, BOS, EOS, UNK. No text is ever encoded as one of the first three.

    source, target = train_bpe(texts.train.source, 8000), train_bpe(texts.train.target, 8000)
    vocabularies = Vocabularies(source, target)     # or one for both languages, Vocabularies(joint, joint)
    save(folder, vocabularies)
    vocabularies = load(folder, digest=vocabularies.digest)
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from experiments.files import DataError

PAD, BOS, EOS, UNK = range(4)
SPECIAL = 4
UNKNOWN = "<unk>"  # what UNK is written as
JOINT = "￭"  # on a mark of punctuation, where no space stands between it and the word beside


class Vocabulary(Protocol):
    """`content` is all of it, in plain values; `size` counts the first four numbers too."""

    @property
    def size(self) -> int: ...

    @property
    def content(self) -> dict: ...

    def encode(self, text: str) -> np.ndarray:
        """Numbers, int32 [length]."""
        ...

    def decode(self, numbers: Sequence[int] | np.ndarray) -> str:
        """The text of the numbers up to the first EOS. Raises ValueError for one beyond the vocabulary."""
        ...


@dataclass(frozen=True)
class Bpe:
    """Byte pairs (Sennrich et al. 2016), on bytes as in Radford et al. 2019: decode(encode(text)) == text of any text.

    A piece is 4 + its place among the 256 bytes and then the merges.
    """

    merges: tuple[tuple[str, str], ...]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        pieces = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        for left, right in self.merges:
            pieces.setdefault(left + right, len(pieces))
        return _byte_level(models.BPE(vocab=pieces, merges=list(self.merges)))

    @property
    def size(self) -> int:
        return SPECIAL + self._tokenizer.get_vocab_size()

    @property
    def content(self) -> dict:
        return {"kind": "bpe", "merges": [list(merge) for merge in self.merges]}

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text).ids, np.int32) + np.int32(SPECIAL)

    def decode(self, numbers: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([number - SPECIAL for number in _said(numbers, self.size) if number >= SPECIAL])


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    return tokenizer


def train_bpe(texts: Iterable[str], size: int) -> Bpe:
    """The byte pairs most frequent in the texts, at most `size` numbers in all; the same texts give the same.

    Raises ValueError where the size has no room for the 256 bytes, or there is no text.
    """
    least = SPECIAL + len(pre_tokenizers.ByteLevel.alphabet())
    if size < least:
        raise ValueError(f"size={size}: a vocabulary of byte pairs has at least {least}, the bytes and four marks")
    trainer = trainers.BpeTrainer(
        vocab_size=size - SPECIAL,  # pyright: ignore
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # pyright: ignore
        show_progress=False,  # pyright: ignore
    )
    tokenizer = _byte_level(models.BPE())
    tokenizer.train_from_iterator(_some(texts), trainer)
    return Bpe(tuple((left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]))


@dataclass(frozen=True)
class Words:
    """The most frequent words, and UNK for all others (Sutskever et al. 2014).

    decode(encode(text)) is the text with single spaces, but for unknown words.
    """

    words: tuple[str, ...]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, SPECIAL)}

    @property
    def size(self) -> int:
        return SPECIAL + len(self.words)

    @property
    def content(self) -> dict:
        return {"kind": "words", "words": list(self.words)}

    def encode(self, text: str) -> np.ndarray:
        return np.array([self._numbers.get(word, UNK) for word in words(text)], np.int32)

    def decode(self, numbers: Sequence[int] | np.ndarray) -> str:
        said = [number for number in _said(numbers, self.size) if number >= UNK]
        return joined([UNKNOWN if number == UNK else self.words[number - SPECIAL] for number in said])


def train_words(texts: Iterable[str], size: int) -> Words:
    """The most frequent words of the texts, `size` numbers in all; of equally frequent ones the first by alphabet.

    Raises ValueError where the size has no room for a word, or there is no text.
    """
    if size <= SPECIAL:
        raise ValueError(f"size={size}: a vocabulary of words has at least {SPECIAL + 1}, four marks and a word")
    return Words(tuple(sorted_by_frequency(_some(texts))[: size - SPECIAL]))


def sorted_by_frequency(texts: Iterable[str]) -> list[str]:
    """All words of the texts, the most frequent first."""
    counts = Counter(word for text in texts for word in words(text))
    return sorted(counts, key=lambda word: (-counts[word], word))


def words(text: str) -> list[str]:
    """Words and marks of punctuation: "l'eau, non" is l ￭'￭ eau ￭, non. `joined` makes the text again."""
    pieces = re.findall(r"\w+|[^\w\s]|\s+", " ".join(text.replace(JOINT, "■").split()))
    made = []
    for before, piece, after in zip(["", *pieces], pieces, [*pieces[1:], ""], strict=False):
        if piece == " ":
            continue
        if not _is_word(piece):
            piece = JOINT * (before not in ("", " ")) + piece + JOINT * _is_word(after)
        made.append(piece)
    return made


def joined(made: Iterable[str]) -> str:
    """The text of words and marks, those that ask for it without a space between."""
    return " ".join(made).replace(f" {JOINT}", "").replace(f"{JOINT} ", "").strip(JOINT)


def _is_word(piece: str) -> bool:
    return re.match(r"\w", piece) is not None


def _said(numbers: Sequence[int] | np.ndarray, size: int) -> list[int]:
    said = [int(number) for number in numbers]
    if wrong := [number for number in said if not 0 <= number < size]:
        raise ValueError(f"the number {wrong[0]} is not of this vocabulary, which has {size}: load the model's own")
    return said[: said.index(EOS)] if EOS in said else said


def _some(texts: Iterable[str]) -> Iterable[str]:
    texts = iter(texts)
    first = next(texts, None)
    if first is None:
        raise ValueError("there is no text to make a vocabulary of: give the sentences to train on")
    return chain([first], texts)


def digest_of(vocabulary: Vocabulary) -> str:
    return hashlib.sha256(json.dumps(vocabulary.content, ensure_ascii=False).encode()).hexdigest()


class Vocabularies(NamedTuple):
    """Of the source and of the target; a joint one is both."""

    source: Vocabulary
    target: Vocabulary

    @property
    def digest(self) -> str:
        """What a checkpoint keeps, to refuse others."""
        return hashlib.sha256("".join(map(digest_of, self)).encode()).hexdigest()


def save(folder: Path, vocabularies: Vocabularies) -> None:
    """Writes source.json and target.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, vocabulary in vocabularies._asdict().items():
        part = folder / f"{side}.json.part"
        part.write_text(json.dumps(vocabulary.content, ensure_ascii=False) + "\n", "utf-8")
        part.replace(folder / f"{side}.json")


def load(folder: Path, *, digest: str | None = None) -> Vocabularies:
    """The vocabularies of a folder. Raises DataError where they are missing, damaged, or not those of the digest."""
    found = Vocabularies(*(_read(folder / f"{side}.json") for side in Vocabularies._fields))
    if digest not in (None, found.digest):
        raise DataError(
            f"the vocabularies in {folder} have the digest {found.digest}, the model was trained with {digest}: put "
            f"the model's own there, or train anew"
        )
    return found._replace(target=found.source) if found.source == found.target else found


def _read(path: Path) -> Vocabulary:
    try:
        match json.loads(path.read_text("utf-8")):
            case {"kind": "bpe", "merges": merges}:
                made = Bpe(tuple((left, right) for left, right in merges))
                try:
                    made.encode("")
                except Exception as error:  # tokenizers raises no other for merges that do not fit together
                    raise ValueError(str(error)) from error
                return made
            case {"kind": "words", "words": [*known]}:
                return Words(tuple(known))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: a model's vocabularies lie with its checkpoints") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no vocabulary ({error}): restore it, or train anew") from error
    raise DataError(f"{path} is no vocabulary: its kind is neither bpe nor words; restore it, or train anew")
