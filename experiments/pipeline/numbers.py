"""What follows from the numbers of a pipeline; a row is that of one stack, number of stages S and of chunks M."""

PAPER = 3.71  # Sutskever et al. 2014: 6,300 words/s on eight GPUs over 1,700 on one


def ideal(row: dict) -> float:
    """S M / (M + S - 1)."""
    return row["stages"] * row["chunks"] / (row["chunks"] + row["stages"] - 1)


def speedup(row: dict, rows: list[dict]) -> float:
    """The time on one device without a pipeline, over the row's."""
    (plain,) = [each for each in rows if each["plain"] and each["stack"] == row["stack"]]
    return plain["seconds"] / row["seconds"]


def best(some: list[dict], rows: list[dict]) -> dict:
    """The fastest of some rows, over one device."""
    return max(some, key=lambda row: speedup(row, rows))


def busy(row: dict) -> float:
    """The share of ticks, of all devices and both ways, at which a chunk was run."""
    cells, ticks = (sum(len(each) for each in row["cells"].values()), sum(map(sum, row["ticks"].values())))
    return cells / ticks


def as_told(row: dict) -> bool:
    """Whether all devices told of M + S - 1 ticks each way, and device k of chunk s - k at tick s, or mirrored."""
    stages, chunks = row["stages"], row["chunks"]
    ticks = chunks + stages - 1
    forward = sorted([k, chunk + k, chunk] for k in range(stages) for chunk in range(chunks))
    reverse = sorted([k, ticks - 1 - tick, chunk] for k, tick, chunk in forward)
    counted = {each for way in row["ticks"].values() for each in way}
    return counted == {ticks} and [sorted(row["cells"][way]) for way in ("forward", "reverse")] == [forward, reverse]
