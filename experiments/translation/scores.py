"""How good translations are: BLEU and chrF by sacrebleu, on text as it is read, with the signature that says how.

And where: by the length of the sentences and the frequency of their words (Sutskever et al. 2014, Fig. 3).
"""

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from experiments.translation.vocabulary import sorted_by_frequency, words

RESAMPLED = 1000  # times, for the interval


class Score(NamedTuple):
    """0 to 100; the interval of 95% over resampled sentences (Koehn 2004), its ends alike far from its mean, or nan."""

    value: float
    low: float
    high: float
    signature: str


class Bin(NamedTuple):
    """The sentences whose property is in [low, high), in the last bin up to `high`; of none no mean and no BLEU."""

    low: float
    high: float
    sentences: int
    mean: float | None
    bleu: Score | None


def bleu(hypotheses: Sequence[str], references: Sequence[str], *, interval: bool = True) -> Score:
    """Of the whole text (Papineni et al. 2002; Post 2018). Raises ValueError for unequal numbers of sentences.

    Without an interval, which takes most of the time, its ends are nan.
    """
    return _scored(BLEU(), hypotheses, references, interval)


def chrf(hypotheses: Sequence[str], references: Sequence[str], *, interval: bool = True) -> Score:
    """Of n-grams of characters (Popović 2015), as `bleu`."""
    return _scored(CHRF(), hypotheses, references, interval)


def _scored(metric: BLEU | CHRF, hypotheses: Sequence[str], references: Sequence[str], interval: bool) -> Score:
    _check(hypotheses, references)
    if not interval:
        score = metric.corpus_score(hypotheses, [references])
        return Score(score.score, float("nan"), float("nan"), str(metric.get_signature()))
    try:
        score = metric.corpus_score(hypotheses, [references], n_bootstrap=RESAMPLED)
    except TypeError:  # sacrebleu's interval fails where some resampled texts are at 0: none then
        return _scored(type(metric)(), hypotheses, references, interval=False)
    signature = str(metric.get_signature())
    told = json.loads(score.format(width=6, signature=signature, is_json=True))  # of no interval where all is 0
    mean, half = told.get("confidence_mean", score.score), told.get("confidence_var", 0.0)
    return Score(score.score, mean - half, mean + half, signature)


def by_length(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], bounds: Sequence[float]
) -> list[Bin]:
    """BLEU of the sentences by their words and marks in the source, bin k from bounds[k] up to bounds[k + 1].

    A sentence outside all bounds is in no bin. Raises ValueError for bounds that do not grow, and as `bleu`.
    """
    return _binned(np.array([len(words(source)) for source in sources]), hypotheses, references, bounds)


def by_rank(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    bounds: Sequence[float],
    *,
    ranks: dict[str, int],
) -> list[Bin]:
    """BLEU of the sentences by the mean rank of their source's words; a word that has none is one behind the last."""
    means = [np.mean([ranks.get(word, len(ranks) + 1) for word in words(source)] or [0]) for source in sources]
    return _binned(np.array(means), hypotheses, references, bounds)


def ranks(texts: Iterable[str]) -> dict[str, int]:
    """The rank of each word of the texts to train on: 1 of the most frequent."""
    return {word: rank for rank, word in enumerate(sorted_by_frequency(texts), 1)}


def even_bounds(values: Sequence[float], bins: int) -> list[float]:
    """Bounds between which about as many values lie, fewer than asked for where values are equal, two at least."""
    bounds = sorted({float(bound) for bound in np.quantile(values, np.linspace(0, 1, bins + 1))})
    return bounds if len(bounds) > 1 else [bounds[0], bounds[0] + 1]


def _binned(
    values: np.ndarray, hypotheses: Sequence[str], references: Sequence[str], bounds: Sequence[float]
) -> list[Bin]:
    _check(hypotheses, references, values)
    if len(bounds) < 2 or any(low >= high for low, high in pairwise(bounds)):
        raise ValueError(f"bounds={list(bounds)}: give two or more that grow, as in [1, 10, 20, 80]")
    bins = []
    for low, high in pairwise(bounds):
        within = (low <= values) & ((values < high) | ((values == high) & (high == bounds[-1])))
        chosen = np.flatnonzero(within).tolist()
        if not chosen:
            bins.append(Bin(low, high, 0, None, None))
            continue
        score = bleu([hypotheses[at] for at in chosen], [references[at] for at in chosen])
        bins.append(Bin(low, high, len(chosen), float(values[chosen].mean()), score))
    return bins


def _check(hypotheses: Sequence[str], references: Sequence[str], values: np.ndarray | None = None) -> None:
    counts = {"translations": len(hypotheses), "references": len(references)}
    if values is not None:
        counts["sources"] = len(values)
    if len(set(counts.values())) != 1 or not len(hypotheses):
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"{told}: give one of each for every sentence, in the same order")
