"""Trained nets without some of their cells, with cells exchanged, and the gradient along single paths through them.

Along depth the cells are the blocks of residual and plain nets, as Veit et al. 2016 lesioned them, and the layers of
dense highway nets, as Srivastava et al. 2015 did; turned, the same functions delete and exchange the time steps of
recurrent nets. The nets are those of the experiment `cifar`, but for the dense ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

from experiments import cifar, lines, nets
from experiments.fit import spread
from experiments.harness import Experiment, Refused
from experiments.lesion import damage, paths
from experiments.lesion.drawing import draw
from experiments.lesion.judging import carried, judge, rises
from experiments.lesion.paths import shares
from lstm_rot.models import classifier, resnet
from lstm_rot.training import sharding
from lstm_rot.training.mesh import make_mesh

ONE_PATH = ("plain", "plain RNN")  # nothing is kept: the only path goes through all cells
Examples = tuple[jax.Array, jax.Array]  # images and classes
DENSE = {"highway": resnet.HIGHWAY, "residual": resnet.RESIDUAL}


@dataclass(frozen=True)
class Config(cifar.Config):
    """The nets, as `cifar` trains them, and how they are looked into."""

    readers: tuple[str, ...] = ("LSTM",)
    """of the recurrent nets: plain RNN, residual RNN, LSTM"""
    dense: tuple[str, ...] = ("highway",)
    """nets of fully connected layers: highway, residual"""
    dense_data: str = "digits"
    """digits or mnist, its images whole"""
    dense_depth: int = 50
    """layers"""
    dense_size: int = 50
    """units of each"""
    dense_steps: int = 200
    """training steps of Adam, at the learning rate `time_rate`"""
    images: int = 360
    """test images, the first ones, of which an error is measured"""
    samples: int = 10
    """random choices of the cells, for each number of cells deleted and of pairs exchanged"""
    path_images: int = 32
    """training images, the first ones, whose loss a path's gradient is of"""
    path_samples: int = 20
    """random paths of each length"""


def _of(preset: str, **changes: Any) -> Config:
    """The nets of that preset of `cifar`."""
    return Config(**(vars(cifar.PRESETS[preset]) | changes))


PRESETS = {
    "quick": _of("quick", depths=(20,)),
    "cpu": _of(
        "cpu",
        depths=(20, 56),
        values=(48, 12),
        readers=tuple(cifar.READERS),
        images=1000,
        dense=tuple(DENSE),
        dense_data="mnist",
        dense_steps=2000,
    ),
}


def run(config: Config, progress: Progress) -> dict:
    """A row for each net, its numbers one for each seed."""
    for option, known in (("readers", cifar.READERS), ("dense", DENSE)):
        if unknown := [name for name in getattr(config, option) if name not in known]:
            raise Refused(f"--{option} {unknown[0]!r}: known are {', '.join(map(repr, known))}")
    there, of_dense = nets.pictures(config.data, config.pixels), None
    shown: dict[tuple[str, int | None], tuple[Examples, Examples]] = {
        (config.data, config.pixels): _shown(config, there)
    }
    if config.dense:
        of_dense = nets.pictures(config.dense_data)
        shown[config.dense_data, None] = _shown(config, of_dense)
    chosen = [each for each in cifar.recipes(config) if each[0] == "depth" or each[1] in config.readers]
    rows: dict[tuple, dict] = {}
    for axis, kind, size, net in cifar.trained(config, [*chosen, *recipes(config)], progress):
        row = rows.setdefault((axis, kind, size), _row(axis, kind, size, net.recipe))
        tested, learnt = shown[net.recipe.data, net.recipe.pixels]
        for name, value in damage.measure(net, *tested, config.samples).items():
            row[name].append(value)
        if kind not in ONE_PATH:
            row["paths"].append(paths.measure(net, *learnt, config.path_samples))
    return {
        "data": there.provenance,
        "data of dense nets": of_dense and of_dense.provenance,
        "classes": cifar.CLASSES,
        "rows": list(rows.values()),
    }


def recipes(config: Config) -> Iterator[tuple[str, str, int, nets.Recipe]]:
    """(axis, kind, size, recipe) of the dense nets."""
    for seed in range(config.seeds):
        for kind in config.dense:
            width = int(np.prod(nets.pictures(config.dense_data).train_x.shape[1:]))
            body = resnet.Config(width, config.dense_size, config.dense_depth, DENSE[kind])
            yield (
                "depth",
                f"dense {kind}",
                config.dense_depth,
                nets.Recipe(
                    classifier.Config(body, cifar.CLASSES),
                    config.dense_data,
                    config.dense_steps,
                    None,
                    config.batch,
                    config.time_rate,
                    optimizer=nets.adam,
                    augment=False,
                    seed=seed,
                ),
            )


def _shown(config: Config, there: nets.Pictures) -> tuple[Examples, Examples]:
    """Those that errors are measured on, and those whose loss the paths' gradients are of."""
    devices, name = make_mesh(config.mesh), there.provenance["name"]

    def first(option: str, x: np.ndarray, y: np.ndarray) -> Examples:
        if (given := getattr(config, option)) % devices.size or given > len(x):
            raise Refused(
                f"--{option.replace('_', '-')} {given}: {name} has {len(x)}, and the {devices.size} devices share "
                f"them: give a multiple of {devices.size} up to that"
            )
        return jax.device_put((x[:given], y[:given]), sharding.batch(devices))

    return first("images", there.test_x, there.test_y), first("path_images", there.train_x, there.train_y)


def _row(axis: str, kind: str, size: int, recipe: nets.Recipe) -> dict:
    able = [cell for line in lines.alike(recipe) for cell in line]
    halving = sorted(set(range(lines.length(recipe))) - set(able))
    row = {"axis": axis, "kind": kind, "size": size, "alike": able, "halving": halving}
    return row | {name: [] for name in ("whole", "single", "deleted", "exchanged", "paths")}


def table(measurements: dict) -> dict:
    columns = ["along", "net", "layers or steps", "test error whole, %", "one cell deleted: median rise, points"]
    columns += ["rise where the maps halve", "middle 90% of the gradient: lengths of paths", "sum of norms / norm"]
    rows = []
    for row in measurements["rows"]:
        found = [shares(each) for each in row["paths"]]
        rows.append(
            [
                row["axis"],
                row["kind"],
                row["size"],
                spread(100 * np.array(row["whole"])),
                spread(rises(row)),
                spread(rises(row, "halving")) if row["halving"] else "-",
                carried(found) if found else "one path",
                f"{np.median([each.excess for each in found]):.3g}" if found else "-",
            ]
        )
    return {"columns": columns, "rows": rows}


EXPERIMENT = Experiment(
    name="lesion",
    title="Trained nets with layers deleted and exchanged, and turned, time steps; the gradient along single paths",
    claims=("VEIT16-lesion", "VEIT16-paths", "SRI15-lesion"),
    presets=PRESETS,
    run=run,
    judge=judge,
    draw=draw,
    caption="Left: blocks of convolutional nets and layers of dense ones; right, by the same functions: time steps of "
    "recurrent nets. From the top: test error without one cell, against its place (along time, where it hardly moves, "
    "its rise; faded: shorter nets; rings: blocks that halve the maps, whose option-A shortcut stays); the same of the "
    "dense nets, and of the shorter lines along time, as a rise; with ever more cells deleted at random;"
    " with pairs of like cells exchanged (along time: their inputs), against the rank correlation of the order; the "
    "norm of the loss's gradient at the line's first stream and memory along random paths through k of the cells "
    "(mean of the logarithm, 10% to 90% of the paths); and what all paths of a length carry: their number times the "
    "mean norm, over the sum for all lengths. Norms add up only as an upper bound: paths may cancel. Grey: that "
    "length's share of the number of paths. Shaded: the paper's lengths, 5 to 17 of 54 blocks, as a share of the "
    "cells. A net that keeps nothing has a single path, through all. Bands: the seeds, and the random choices of "
    "cells.",
    table=table,
)
