"""Stores what torch.nn.LSTM, GRU and RNN compute, values and gradients: python make.py, with torch 2.13 and numpy.

Every entry is named model/number of layers/what. The weights and their gradients keep torch's names and layout, so the
conversion is the test's. The loss is the sum of outputs and last carries, each times fixed random numbers.

In variants.npz stand LSTMs of two layers in float64, of one and two directions, with and without projection: their
state_dict as it is, and the values.
"""

from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

STEPS, BATCH, WIDTH, HIDDEN, LENGTHS = 6, 4, 3, 5, [6, 4, 1, 3]


def run(name: str, num_layers: int) -> dict[str, np.ndarray]:
    torch.manual_seed(num_layers)
    model = getattr(torch.nn, name)(WIDTH, HIDDEN, num_layers)
    xs = torch.randn(STEPS, BATCH, WIDTH, requires_grad=True)
    carry = [torch.randn(num_layers, BATCH, HIDDEN, requires_grad=True) for _ in range(1 + (name == "LSTM"))]
    packed = torch.nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(LENGTHS), enforce_sorted=False)
    out, last = model(packed, tuple(carry) if name == "LSTM" else carry[0])
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, total_length=STEPS)
    results = {"out": out} | dict(zip("hc", last if name == "LSTM" else [last], strict=False))
    factors = {f"factor_{key}": torch.randn(value.shape) for key, value in results.items()}
    torch.stack([(value * factors[f"factor_{key}"]).sum() for key, value in results.items()]).sum().backward()
    inputs = {"xs": xs} | dict(zip(("h0", "c0"), carry, strict=False)) | dict(model.named_parameters())
    gradients = {f"grad_{key}": value.grad for key, value in inputs.items()}
    return {key: value.detach().numpy() for key, value in (inputs | results | factors | gradients).items()}


def variant(bidirectional: bool, proj_size: int, num_layers: int = 2) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    model = torch.nn.LSTM(
        WIDTH, HIDDEN, num_layers, bidirectional=bidirectional, proj_size=proj_size, dtype=torch.float64
    )
    rows = num_layers * (1 + bidirectional)
    xs = torch.randn(STEPS, BATCH, WIDTH, dtype=torch.float64)
    h0 = torch.randn(rows, BATCH, proj_size or HIDDEN, dtype=torch.float64)
    c0 = torch.randn(rows, BATCH, HIDDEN, dtype=torch.float64)
    packed = torch.nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(LENGTHS), enforce_sorted=False)
    out, (h, c) = model(packed, (h0, c0))
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, total_length=STEPS)
    results = {"xs": xs, "h0": h0, "c0": c0, "out": out, "h": h, "c": c}
    results |= {f"state/{key}": value for key, value in model.state_dict().items()}
    return {key: value.detach().numpy() for key, value in results.items()}


if __name__ == "__main__":
    stored = {
        f"{name}/{num_layers}/{key}": value
        for name in ("LSTM", "GRU", "RNN")
        for num_layers in (1, 2, 3)
        for key, value in run(name, num_layers).items()
    }
    stored["lengths"] = np.array(LENGTHS)
    np.savez_compressed(Path(__file__).with_name("outputs.npz"), **stored)  # pyright: ignore[reportArgumentType]

    variants = {
        f"{int(bidirectional)},{proj_size}/{key}": value
        for bidirectional in (False, True)
        for proj_size in (0, 2)
        for key, value in variant(bidirectional, proj_size).items()
    } | {"lengths": np.array(LENGTHS)}
    np.savez_compressed(Path(__file__).with_name("variants.npz"), **variants)  # pyright: ignore[reportArgumentType]
