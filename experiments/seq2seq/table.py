"""The table: Sutskever et al. 2014's rows and Vaswani et al. 2017's, ours beside theirs."""

from typing import Any

import numpy as np

from experiments.fit import counted
from experiments.seq2seq.measuring import BAHDANAU, PAPER

UNASKED = "not asked for: out of reach here"
ATTENDING = {"luong": "LSTM with attention (Luong)", "bahdanau": "LSTM with attention (Bahdanau)"}
PHRASES = "out of reach here: no phrase-based system is trained"
STATISTICAL = {  # Sutskever et al. 2014, Tables 1 and 2
    "phrase-based system of WMT'14, the best": "37.0",
    "phrase-based system with a recurrent net's scores (Cho et al. 2014)": "34.54",
    "phrase-based system, the paper's baseline": "33.30",
    "its 1,000 best rescored by a single forward LSTM": "35.61",
    "its 1,000 best rescored by a single reversed LSTM": "35.85",
    "its 1,000 best rescored by 5 reversed LSTMs": "36.5",
    "the best of its 1,000, by an oracle": "about 45",
}


def table(measurements: dict) -> dict:
    rows: list[list[Any]] = [[what, "", paper, PHRASES, "", "", ""] for what, paper in STATISTICAL.items()]
    for row in measurements["rows"]:
        several = f"{row['nets']} " if row["nets"] > 1 else "single "
        what = ATTENDING.get(row["name"], f"{several}{row['name']} LSTM" + "s" * (row["nets"] > 1))
        what = "Transformer" if row["name"] == "transformer" else what
        paper = f"{row['paper']:.2f}" if "paper" in row else "-"
        if not row["bleu"]:
            rows.append([what, row["width"], paper, f"needs {row['nets']} seeds: out of reach here", "", "", ""])
            continue
        bleu = np.array(row["bleu"])
        interval = f"{bleu[0, 1]:.1f} to {bleu[0, 2]:.1f}"
        chrf, seconds = f"{np.mean(row['chrf']):.1f}", f"{np.min(row['seconds']):.0f}"
        rows.append([what, row["width"], paper, of(bleu[:, 0]), interval, chrf, seconds])
    asked = {(row["nets"], row["width"]) for row in measurements["rows"] if row["name"] == "reversed"}
    for (nets, width), paper in PAPER.items():
        if (nets, width) not in asked:
            what = "single reversed LSTM" if nets == 1 else f"{nets} reversed LSTMs"
            rows.append([what, width, f"{paper:.2f}", UNASKED, "", "", ""])
    if "bahdanau" not in {row["name"] for row in measurements["rows"]}:
        rows.append([ATTENDING["bahdanau"], 12, f"{BAHDANAU:.2f}", UNASKED, "", "", ""])
    groups: dict[tuple, list[dict]] = {}
    for net in measurements["nets"]:
        groups.setdefault((net["cell"], net["layers"], net["reversed"], net["parameters"]), []).append(net)
    for (cell, layers, reversed, parameters), mine in groups.items():
        way = "reversed" if reversed else "forward"
        what = f"{cell}, {counted(layers, 'layer')}, {way}: {parameters / 1e6:.2f}M parameters"
        perplexity, bleu = (np.array([net[name] for net in mine]) for name in ("perplexity", "greedy"))
        rows.append([what, 1, "", f"perplexity {of(perplexity)}, greedy BLEU {of(bleu)}", "", "", ""])
    for net in measurements.get("diverged", []):
        way = "reversed" if net["reversed"] else "forward"
        what = f"{net['cell']}, {counted(net['layers'], 'layer')}, {way}, seed {net['seed']}"
        rows.append([what, 1, "", "diverged", "", "", ""])
    columns = ["", "beam", "the papers, WMT'14 En-Fr", "BLEU", "95%, first seed", "chrF", "seconds"]
    return {"columns": columns, "rows": rows}


def of(values: np.ndarray) -> str:
    """The mean, and how far the seeds are from it."""
    return f"{values.mean():.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")
