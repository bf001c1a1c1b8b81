"""What is measured of translators: the rows of the paper's table, and the numbers of its figures."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.progress import Progress

from experiments.harness import Refused
from experiments.seq2seq.training import Diverged, Net, Recipe, count, model_of, nats, task_of, trained
from experiments.seq2seq.translating import translate
from experiments.translation import examples, scores
from experiments.translation.vocabulary import words
from lstm_rot.models import seq2seq

ANY = 1_000_000  # numbers: what is tested on is translated whole, however long
BINS = 5
PAPER = {(1, 12): 30.59, (5, 1): 33.00, (2, 12): 33.27, (5, 2): 34.50, (5, 12): 34.81}  # nets, beam: BLEU
BAHDANAU = 28.45  # Bahdanau et al. 2014, in the same table
SAMPLES = 4
VOICES = {  # the same said twice, the first of each with the roles exchanged in the next
    "de": (
        "Ein Mann küsst eine Frau.",
        "Eine Frau wird von einem Mann geküsst.",
        "Eine Frau küsst einen Mann.",
        "Ein Mann wird von einer Frau geküsst.",
        "Ein Hund jagt eine Katze.",
        "Eine Katze wird von einem Hund gejagt.",
        "Eine Katze jagt einen Hund.",
        "Ein Hund wird von einer Katze gejagt.",
    ),
    "en": (
        "A man kisses a woman.",
        "A woman is kissed by a man.",
        "A woman kisses a man.",
        "A man is kissed by a woman.",
        "A dog chases a cat.",
        "A cat is chased by a dog.",
        "A cat chases a dog.",
        "A dog is chased by a cat.",
    ),
    "fr": (
        "Un homme embrasse une femme.",
        "Une femme est embrassée par un homme.",
        "Une femme embrasse un homme.",
        "Un homme est embrassé par une femme.",
        "Un chien poursuit un chat.",
        "Un chat est poursuivi par un chien.",
        "Un chat poursuit un chien.",
        "Un chien est poursuivi par un chat.",
    ),
}


class Row(NamedTuple):
    """A row of the table: which translators, how many together, how wide the beam; the paper's BLEU, or None.

    Of 2014 (Sutskever et al., Table 1) and, the Transformer's, 2017 (Vaswani et al., Table 2, its base).
    """

    name: str
    cell: str
    reversed: bool
    nets: int
    width: int
    alpha: float
    paper: float | None


def rows(config: Any) -> list[Row]:
    """Those of Sutskever et al. 2014, Table 1, as far as there are the beams and ensembles, and what came after."""
    widest = max(config.beams)
    told = [Row("forward", "lstm", False, 1, widest, 0.0, 26.17 if widest == 12 else None)]
    told += [
        Row("reversed", "lstm", True, nets, width, 0.0, PAPER.get((nets, width)))
        for nets in sorted({1, *config.ensembles})
        for width in sorted({*config.beams})
    ]
    for cell in config.beside:
        alpha = 0.6 if cell == "transformer" else 0.0  # Vaswani et al. 2017, section 6.1
        paper_of = {"transformer": 38.1, "bahdanau": BAHDANAU}.get(cell)
        told.append(Row(cell, cell, False, 1, 4 if cell == "transformer" else max(config.beams), alpha, paper_of))
    return told


def measured(recipes: Sequence[Recipe], config: Any, progress: Progress) -> dict:
    """Trains what is not trained yet, translates the test text by each, and says how well.

    Raises Refused for what does not fit, before anything is trained, and where the LSTM itself diverges.
    """
    there = task_of(recipes[0], config.runs)
    for recipe in recipes:
        model_of(recipe, there.vocabularies)
    todo = progress.add_task("translators", total=len(recipes))
    nets, diverged = [], []
    for recipe in recipes:
        try:
            nets.append(trained(recipe, config.runs, points=config.points, mesh=config.mesh))
        except Diverged as error:
            diverged.append({**_who(recipe), "error": str(error)})
        progress.advance(todo)
    main = {("lstm", way, min(config.depths)) for way in (False, True)}
    if lacking := main - {(net.recipe.cell, net.recipe.reversed, net.recipe.layers) for net in nets}:
        raise Refused(f"every LSTM of {sorted(lacking)} (reversed, layers) diverged: lower --learning-rate")
    name, test = next(iter(there.parallel.tests.items()))
    chosen = [int(at) for at in np.linspace(0, len(test) - 1, min(config.sentences, len(test)))]
    sources, references = [test.source[at] for at in chosen], [test.target[at] for at in chosen]
    numbers, _ = examples.encoded(test, there.vocabularies, limit=ANY)
    told = [told_of(net, numbers, sources, references) for net in nets]
    table, translations = [], {}
    wanted = rows(config)
    task = progress.add_task("translations", total=len(wanted))
    for row in wanted:
        table.append(_row(row, nets, min(config.depths), sources, references, translations))
        progress.advance(task)
    progress.remove_task(todo)
    progress.remove_task(task)
    single = {
        name: translations[name, 1, width]
        for name in ("forward", "reversed", *config.beside)
        for width in [max(row.width for row in wanted if row.name == name)]
        if (name, 1, width) in translations
    }
    return {
        "data": there.parallel.provenance,
        "test": f"{config.data} {config.source}-{config.target}, {name}",
        "sentences": len(sources),
        "left_out": there.left_out,
        "diverged": diverged,
        "nets": told,
        "rows": table,
        "vectors": vectors(_first(nets, "lstm", True, min(config.depths)), said_twice(config)),
        "voices": {way: _voices(nets, way == "reversed", config) for way in ("forward", "reversed")},
        **_by(single, sources, references, there.parallel.train.source),
        "samples": [
            {"source": sources[at], "reference": references[at], **{name: said[at] for name, said in single.items()}}
            for at in np.linspace(0, len(sources) - 1, min(SAMPLES, len(sources))).astype(int).tolist()
        ],
    }


def told_of(net: Net, numbers: examples.Encoded, sources: list[str], references: list[str]) -> dict:
    """A translator's curve, perplexity and greedy translation of the test text."""
    said = [one[0].text for one in translate([net], sources, width=1, limit=ANY)]
    recipe, greedy = net.recipe, scores.bleu(said, references, interval=False)
    return {
        **_who(recipe),
        "parameters": count(net.model),
        "pairs": [step * recipe.batch for step in net.curve["step"]],
        "valid": [float(np.exp(value)) for value in net.curve["valid"]],
        "perplexity": float(np.exp(nats(recipe, net.model, net.params, numbers, most=len(numbers.source)))),
        "greedy": greedy.value,
        "signature": greedy.signature,
        "words_per_second": net.words_per_second,
    }


def _who(recipe: Recipe) -> dict:
    return {name: getattr(recipe, name) for name in ("cell", "layers", "reversed", "seed")}


def _row(row: Row, nets: list[Net], layers: int, sources: list, references: list, translations: dict) -> dict:
    mine = [
        net
        for net in nets
        if (net.recipe.cell, net.recipe.reversed) == (row.cell, row.reversed)
        and (net.recipe.layers == layers or row.cell == "transformer")
    ]
    told = {name: value for name, value in row._asdict().items() if value is not None}
    told |= {"bleu": [], "chrf": [], "seconds": [], "signature": "", "chrf_signature": ""}
    if len(mine) < row.nets:
        return told
    groups = [[net] for net in mine] if row.nets == 1 else [mine[: row.nets]]
    for group in groups:
        start = time.perf_counter()
        answers = translate(group, sources, width=row.width, alpha=row.alpha, limit=ANY)
        told["seconds"].append(time.perf_counter() - start)
        said = [hypotheses[0].text if hypotheses else "" for hypotheses in answers]
        translations.setdefault((row.name, row.nets, row.width), said)
        score, of_letters = scores.bleu(said, references), scores.chrf(said, references, interval=False)
        told["bleu"].append([score.value, score.low, score.high])
        told["chrf"].append(of_letters.value)
        told |= {"signature": score.signature, "chrf_signature": of_letters.signature}
    return told


def _first(nets: list[Net], cell: str, reversed: bool, layers: int) -> Net:
    return next(n for n in nets if (n.recipe.cell, n.recipe.reversed, n.recipe.layers) == (cell, reversed, layers))


def sentence_vectors(net: Net, sentences: Sequence[str]) -> np.ndarray:
    """[N, all carries]: what the encoder hands to the decoder, of all layers."""
    made = []
    for sentence in sentences:
        row = net.vocabularies.source.encode(sentence)[net.recipe.order]
        carry = seq2seq.encode(net.params, row[:, None], config=net.model)
        made.append(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(carry)]))
    return np.array(made)


def said_twice(config: Any) -> tuple[str, ...]:
    """Those of VOICES in the source's language; none where nobody kisses anybody."""
    return () if config.data == "numbers" else VOICES.get(config.source, ())


def vectors(net: Net, sentences: Sequence[str]) -> list[dict]:
    """Two principal components of the sentences' vectors."""
    if not sentences:
        return []
    x = sentence_vectors(net, sentences)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return [
        {"text": text, "x": float(a), "y": float(b)} for text, (a, b) in zip(sentences, (u * s)[:, :2], strict=True)
    ]


def _voices(nets: list[Net], reversed: bool, config: Any) -> list[float]:
    """Of each seed, the share of sentences whose nearest of the four about the same two is the same in other words."""
    sentences, shares = said_twice(config), []
    for net in nets:
        recipe = net.recipe
        if sentences and (recipe.cell, recipe.reversed, recipe.layers) == ("lstm", reversed, min(config.depths)):
            x = sentence_vectors(net, sentences)
            far = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.where(np.eye(len(x), dtype=bool), np.inf, 0)
            nearest = [at // 4 * 4 + far[at, at // 4 * 4 : at // 4 * 4 + 4].argmin() for at in range(len(x))]
            shares.append(float(np.mean([other // 2 == at // 2 for at, other in enumerate(nearest)])))
    return shares


def _by(single: dict[str, list[str]], sources: list, references: list, train: Sequence[str]) -> dict:
    """Fig. 3: BLEU by the length of the source and by how rare its words are, in bins of about as many sentences."""
    ranks = scores.ranks(train[at] for at in range(0, len(train), -(-len(train) // 1_000_000)))
    lengths = [len(words(source)) for source in sources]
    means = [float(np.mean([ranks.get(word, len(ranks) + 1) for word in words(source)])) for source in sources]
    long, rare = scores.even_bounds(lengths, BINS), scores.even_bounds(means, BINS)
    return {
        "by_length": {name: _plain(scores.by_length(sources, said, references, long)) for name, said in single.items()},
        "by_rank": {
            name: _plain(scores.by_rank(sources, said, references, rare, ranks=ranks)) for name, said in single.items()
        },
    }


def _plain(bins: list[scores.Bin]) -> list[dict]:
    return [
        {"mean": one.mean, "sentences": one.sentences, "bleu": list(one.bleu[:3])}
        for one in bins
        if one.bleu is not None
    ]
