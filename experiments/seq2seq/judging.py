"""The rules, written before the runs."""

from itertools import pairwise

import numpy as np

from experiments.fit import spread
from experiments.harness import CONTRADICTED, INCONCLUSIVE, OUT_OF_REACH, REPRODUCED, Finding

SEEDS = 3
WITHIN = 1.5  # BLEU
EASY, HARD = 1.1, 1.5  # times the LSTM's perplexity
LAYER = 0.93  # "nearly 10%" cut
VOICES = 0.75
LONG = 20  # words: the last bin's mean at least
MANY = 100  # sentences in a bin at least
KEPT = 0.9  # of the shortest sentences' BLEU
WMT = "wmt14"
WMT_SENTENCES = 3003  # of newstest2014
ROWS = 6  # of the paper's table that are nets alone


def judge(measurements: dict) -> list[Finding]:
    return [
        table_1(measurements),
        reverse(measurements),
        conjecture(measurements),
        depth(measurements),
        voices(measurements),
        lengths(measurements),
        attention(measurements),
    ]


def of(measurements: dict, cell: str, reversed: bool, name: str) -> np.ndarray:
    """A number of every seed; the least depth."""
    nets = [net for net in measurements["nets"] if (net["cell"], net["reversed"]) == (cell, reversed)]
    least = nets[0]["layers"] if nets else 0
    return np.array([net[name] for net in nets if net["layers"] == least])


def told(row: dict) -> str:
    several = f"of {row['nets']} " if row["nets"] > 1 else ""
    return f"{row['name']} {several}beam {row['width']}: {np.mean([score[0] for score in row['bleu']]):.1f}"


def table_1(measurements: dict) -> Finding:
    rows = [row for row in measurements["rows"] if row["cell"] == "lstm" and "paper" in row and row["bleu"]]
    ours = "; ".join(map(told, rows))
    lacking = ROWS - len(rows)
    if lacking:
        ours += f"; {lacking} of the paper's rows were not asked for, or need more seeds"
    verdict = OUT_OF_REACH
    if measurements["test"].startswith(WMT) and not lacking and measurements["sentences"] == WMT_SENTENCES:
        away = [abs(np.mean([score[0] for score in row["bleu"]]) - row["paper"]) for row in rows]
        verdict = REPRODUCED if max(away) <= WITHIN else CONTRADICTED
    return Finding(
        "SEQ14-t1",
        f"{measurements['test']}: {ours}",
        verdict,
        f"on WMT'14, newstest2014, with all rows: reproduced if each is within {WITHIN} BLEU of the paper's, else "
        "contradicted; on other data, where its figures say nothing of ours, out of reach here",
    )


def lower(a: np.ndarray, b: np.ndarray) -> int:
    """1 if a is below b by more than both standard deviations, -1 if above, else 0."""
    apart = b.mean() - a.mean()
    return int(np.sign(apart)) if abs(apart) > a.std() + b.std() else 0


def reverse(measurements: dict) -> Finding:
    perplexity, bleu = (
        [of(measurements, "lstm", way, name) for way in (False, True)] for name in ("perplexity", "greedy")
    )
    enough = min(map(len, perplexity)) >= SEEDS
    both = (lower(perplexity[1], perplexity[0]), lower(bleu[0], bleu[1])) if min(map(len, perplexity)) else (0, 0)
    verdict = INCONCLUSIVE
    if enough and both == (1, 1):
        verdict = REPRODUCED
    elif enough and max(both) <= 0 and min(both) < 0:
        verdict = CONTRADICTED
    return Finding(
        "SEQ14-reverse",
        f"{measurements['test']}, a token: perplexity {spread(perplexity[0])} forward, {spread(perplexity[1])} "
        f"reversed; greedy BLEU {spread(bleu[0])} and {spread(bleu[1])}",
        verdict,
        f"with at least {SEEDS} seeds: reproduced if perplexity and BLEU are both better reversed, by more than the "
        "two standard deviations together; contradicted if one is so much worse and the other not so much better; else "
        "inconclusive",
    )


def conjecture(measurements: dict) -> Finding:
    cells = [
        cell
        for cell in ("rnn", "residual_rnn", "lstm")
        if all(len(of(measurements, cell, way, "perplexity")) for way in (False, True))
    ]
    parts = [
        f"{cell}: perplexity {spread(of(measurements, cell, False, 'perplexity'))} forward, "
        f"{spread(of(measurements, cell, True, 'perplexity'))} reversed; greedy BLEU "
        f"{spread(of(measurements, cell, False, 'greedy'))}, {spread(of(measurements, cell, True, 'greedy'))}"
        for cell in cells
    ]
    verdict = INCONCLUSIVE
    plain, plain_forward, lstm = (
        of(measurements, *which, "perplexity") for which in (("rnn", True), ("rnn", False), ("lstm", True))
    )
    if min(map(len, (plain, plain_forward, lstm))) >= SEEDS:
        ratio = plain.mean() / lstm.mean()
        if lower(plain, plain_forward) == 1 and ratio <= EASY:
            verdict = REPRODUCED
        elif lower(plain, plain_forward) == -1 or ratio > HARD:
            verdict = CONTRADICTED
    return Finding(
        "SEQ14-open",
        "; ".join(parts) or "no plain recurrent net",
        verdict,
        f"with at least {SEEDS} seeds: reproduced if the plain recurrent net's perplexity is lower reversed than "
        f"forward by more than the two standard deviations together, and at most {EASY} times the reversed LSTM's; "
        f"contradicted if it is so much higher reversed, or above {HARD} times the LSTM's; else inconclusive",
    )


def depth(measurements: dict) -> Finding:
    by_layers: dict[int, list[float]] = {}
    for net in measurements["nets"]:
        if (net["cell"], net["reversed"]) == ("lstm", True):
            by_layers.setdefault(net["layers"], []).append(net["perplexity"])
    layers = {count: np.array(by_layers[count]) for count in sorted(by_layers)}
    pairs = list(pairwise(layers.values()))
    verdict = INCONCLUSIVE
    if pairs and min(map(len, layers.values())) >= SEEDS:
        if all(deeper.mean() <= LAYER * before.mean() for before, deeper in pairs):
            verdict = REPRODUCED
        elif all(deeper.mean() >= before.mean() for before, deeper in pairs):
            verdict = CONTRADICTED
    ours = ", ".join(f"{count} layers: {spread(of)}" for count, of in layers.items())
    return Finding(
        "SEQ14-depth",
        f"perplexity a token, reversed: {ours}",
        verdict,
        f"with at least {SEEDS} seeds of each depth: reproduced if each further layer takes the mean perplexity to "
        f"{LAYER} of it or less; contradicted if none lowers it; else, or of one depth, inconclusive",
    )


def voices(measurements: dict) -> Finding:
    shares = measurements["voices"]["reversed"]
    verdict = INCONCLUSIVE
    if len(shares) >= SEEDS and np.mean(shares) >= VOICES:
        verdict = REPRODUCED
    elif len(shares) >= SEEDS and np.mean(shares) <= 1 / 3:
        verdict = CONTRADICTED
    ours = "no sentences for this data and language"
    if shares:
        ours = (
            f"of four sentences about the same two, each twice said, the nearest is the same in the other voice in "
            f"{100 * np.mean(shares):.0f}% of cases reversed, {100 * np.mean(measurements['voices']['forward']):.0f}% "
            f"forward; by chance a third"
        )
    return Finding(
        "SEQ14-fig2",
        ours,
        verdict,
        f"with at least {SEEDS} seeds, reversed LSTM: reproduced if at least {VOICES:.0%} of the sentences lie nearest "
        "to the one of the same meaning, of the three others about the same two; contradicted at a third or less; else "
        "inconclusive",
    )


def lengths(measurements: dict) -> Finding:
    bins = measurements["by_length"].get("reversed", [])
    verdict, ours = INCONCLUSIVE, "no bins"
    if len(bins) > 1:
        short, long = bins[0], bins[-1]
        ours = (
            f"BLEU {short['bleu'][0]:.1f} at {short['mean']:.0f} words and marks, {long['bleu'][0]:.1f} at "
            f"{long['mean']:.0f}, reversed"
        )
        if long["mean"] >= LONG and min(short["sentences"], long["sentences"]) >= MANY:
            if long["bleu"][2] < short["bleu"][1]:
                verdict = CONTRADICTED
            elif long["bleu"][0] >= KEPT * short["bleu"][0]:
                verdict = REPRODUCED
    return Finding(
        "SEQ14-fig3",
        ours,
        verdict,
        f"of the reversed LSTM: contradicted if the interval of the longest sentences' BLEU lies below that of the "
        f"shortest's; reproduced if not, and theirs is at least {KEPT} of it; else, or where the longest have fewer "
        f"than {LONG} words and marks on average, or a bin fewer than {MANY} sentences, inconclusive",
    )


def attention(measurements: dict) -> Finding:
    rows = {row["name"]: row for row in measurements["rows"] if row["bleu"] and row["nets"] == 1}
    ours = "; ".join(map(told, rows.values()))
    return Finding(
        "VAS17-t2",
        f"{measurements['test']}: {ours}",
        OUT_OF_REACH,
        "the paper's sizes and data, eight GPUs for days, are out of reach here: ours beside it, without a verdict",
    )
