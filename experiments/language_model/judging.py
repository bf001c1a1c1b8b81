"""The rule for Kaplan's claim about context, written before any run: what more context is worth to each model."""

import numpy as np

from experiments.harness import CONTRADICTED, INCONCLUSIVE, REPRODUCED, Finding

EARLY = 16  # positions from the start on which the two should be alike
PLATEAU = 96  # Kaplan's "fewer than 100 tokens"
ENOUGH = 1_000_000  # parameters: most of Kaplan's models have more, and all read far more text
RULE = (
    "Bits per byte on the test text, each seed's mean over a span of positions: e over the first 16, m from 64 to 95, "
    "l over the last quarter of the window; gain = m - l. Reproduced if the Transformer's mean gain exceeds the LSTM's "
    "by more than the two standard deviations together, the LSTM's is no more than its own standard deviation above 0, "
    "and the mean e of the two differ by less than 5%. Contradicted if the LSTM's gain exceeds the Transformer's by "
    "that much. Else, for windows of fewer than 192 bytes, or fewer than three seeds, inconclusive; and so for models "
    "of fewer than a million parameters, which say nothing of Kaplan's, whichever way they point."
)


def spans(curve: list[float]) -> tuple[float, float]:
    """(e, m - l) of one seed's curve over positions."""
    bits = np.asarray(curve)
    return float(bits[:EARLY].mean()), float(bits[64:PLATEAU].mean() - bits[-len(bits) // 4 :].mean())


def judge(measurements: dict) -> list[Finding]:
    """KAP20-fig7, of the LSTM and the Transformer."""
    curves: dict[str, list] = {}
    for run in measurements["runs"]:
        curves.setdefault(run["model"], []).append(run["by_position"])
    both = [curves.get(name, []) for name in ("lstm", "transformer")]
    short = min((len(curve) for of in both for curve in of), default=0)
    if min(map(len, both)) == 0 or short < 2 * PLATEAU:
        return [Finding("KAP20-fig7", f"windows of {short} bytes: too short for the question", INCONCLUSIVE, RULE)]
    early, gain = (np.array([[spans(curve)[k] for curve in of] for of in both]) for k in (0, 1))
    (lstm, turned), (lstm_spread, spread) = gain.mean(1), gain.std(1)
    alike = abs(early[0].mean() / early[1].mean() - 1) < 0.05
    small = min(run["parameters"] for run in measurements["runs"]) < ENOUGH
    apart, enough = lstm_spread + spread, min(map(len, both)) >= 3 and not small
    verdict = INCONCLUSIVE
    if enough and turned - lstm > apart and lstm <= lstm_spread and alike:
        verdict = REPRODUCED
    elif enough and lstm - turned > apart:
        verdict = CONTRADICTED
    ours = (
        f"from positions 64-95 to the last quarter of {short} the LSTM gains {lstm:.3f} ± {lstm_spread:.3f} bits per "
        f"byte, the Transformer {turned:.3f} ± {spread:.3f}; on the first {EARLY} they are at {early[0].mean():.2f} "
        f"and {early[1].mean():.2f}; models of {measurements['runs'][0]['parameters'] / 1e6:.2g}M parameters, one text"
    )
    return [Finding("KAP20-fig7", ours, verdict, RULE)]
