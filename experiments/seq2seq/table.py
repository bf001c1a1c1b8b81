"""The table: Sutskever et al. 2014's rows, ours beside theirs."""

from typing import Any

import numpy as np


def table(measurements: dict) -> dict:
    rows: list[list[Any]] = [
        ["phrase-based system", "", "33.30", "out of reach here: no such system is trained", "", "", ""]
    ]
    for row in measurements["rows"]:
        several = f"{row['nets']} " if row["nets"] > 1 else "single "
        named = {"luong": "LSTM with attention (Luong)", "bahdanau": "LSTM with attention (Bahdanau)"}
        what = named.get(row["name"], f"{several}{row['name']} LSTM" + "s" * (row["nets"] > 1))
        what = "Transformer" if row["name"] == "transformer" else what
        paper = f"{row['paper']:.2f}" if "paper" in row else "-"
        if not row["bleu"]:
            rows.append([what, row["width"], paper, f"needs {row['nets']} seeds: out of reach here", "", "", ""])
            continue
        bleu = np.array(row["bleu"])
        spread = f" ± {bleu[:, 0].std():.2f}" if len(bleu) > 1 else ""
        interval = f"{bleu[0, 1]:.1f} to {bleu[0, 2]:.1f}"
        chrf, seconds = f"{np.mean(row['chrf']):.1f}", f"{np.min(row['seconds']):.0f}"
        rows.append([what, row["width"], paper, f"{bleu[:, 0].mean():.2f}{spread}", interval, chrf, seconds])
    for net in measurements["nets"]:
        if net["seed"]:
            continue
        way = "reversed" if net["reversed"] else "forward"
        what = f"{net['cell']}, {net['layers']} layers, {way}: {net['parameters'] / 1e6:.2f}M parameters"
        told = f"perplexity {net['perplexity']:.2f}, greedy BLEU {net['greedy']:.1f}"
        rows.append([what, 1, "", told, "", "", f"{net['words_per_second']:,.0f} words/s in training"])
    columns = ["", "beam", "the paper, WMT'14 En-Fr", "BLEU", "95%", "chrF", "seconds"]
    return {"columns": columns, "rows": rows}
