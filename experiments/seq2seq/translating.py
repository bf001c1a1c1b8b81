"""Sentences translated by one net, or by several together, in batches of about one length."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.harness import Refused
from experiments.seq2seq.training import Net
from experiments.translation import examples
from experiments.translation.vocabulary import BOS, EOS
from lstm_rot import decoding
from lstm_rot.models import seq2seq

BATCH = 32  # sentences searched for at once
MORE = 50  # numbers that a translation may have above the longest source (Vaswani et al. 2017, section 6.1: its own)
ROUNDED = 8  # numbers: sources are padded to multiples, so that few programs are compiled


class Translation(NamedTuple):
    """A hypothesis, and its score: log p over the length to the power of the search's."""

    text: str
    score: float


def translate(
    nets: Sequence[Net],
    sentences: Sequence[str],
    *,
    width: int,
    alpha: float = 0.0,
    limit: int | None = None,
) -> list[list[Translation]]:
    """Of each sentence the best hypotheses, `width` of them at most, best first; of an empty one an empty text.

    Several nets are an ensemble, each of which reads in the order that it was trained in. limit: numbers in a sentence
    at most; None: that which they were trained with. Raises Refused for a width of 0, nets whose words differ, and a
    sentence over the limit, naming its line.
    """
    one = nets[0]
    if width < 1:
        raise Refused(f"a beam of {width} keeps no hypothesis: give 1, which is greedy, or more")
    if len({net.vocabularies.digest for net in nets}) > 1 or len({net.model for net in nets}) > 1:
        raise Refused("an ensemble's nets have one vocabulary and one shape: give nets of one recipe but for the seed")
    rows = []
    for number, sentence in enumerate(sentences, 1):
        try:
            said = sentence.strip()
            where = f"the sentences, line {number}"
            row = (
                examples.sentence(said, one.vocabularies.source, limit=limit or one.recipe.limit, where=where)
                if said
                else ()
            )
        except ValueError as error:
            raise Refused(str(error)) from error
        rows.append(np.asarray(row, np.int32))
    answers = [[Translation("", 0.0)] for _ in rows]
    order = sorted((at for at, row in enumerate(rows) if len(row)), key=lambda at: len(rows[at]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        for at, hypotheses in zip(chosen, _searched(nets, [rows[at] for at in chosen], width, alpha), strict=True):
            answers[at] = hypotheses
    return answers


def _searched(nets: Sequence[Net], rows: list[np.ndarray], width: int, alpha: float) -> list[list[Translation]]:
    first, count = nets[0], len(rows)
    rows = rows + [rows[-1]] * (BATCH - count)
    longest = -(-max(map(len, rows)) // ROUNDED) * ROUNDED
    words, decoder = max(first.recipe.limit, longest) + MORE, first.model.decoder  # the same of most batches
    lengths = np.array([len(row) for row in rows], np.int32)

    def read(net: Net) -> Any:
        source = np.zeros((longest, BATCH), np.int32)
        for at, row in enumerate(rows):
            source[: len(row), at] = row[net.recipe.order]
        return seq2seq.encode(net.params, source, config=net.model, lengths=lengths, positions=words)

    made = [(net.params.decoder, read(net)) for net in nets]
    score = decoding.Score(alpha)
    found = decoding.beam(made, config=decoder, begin=BOS, end=EOS, width=width, max_length=words, score=score)
    numbers, kept, scores = (np.asarray(leaf)[:count] for leaf in found)
    decode = first.vocabularies.target.decode
    return [
        [
            Translation(decode(numbers[at, k, : kept[at, k]]), float(scores[at, k]))
            for k in range(width)
            if kept[at, k] > 0
        ]
        for at in range(count)
    ]
