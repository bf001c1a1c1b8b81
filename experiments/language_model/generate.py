"""`python -m experiments.language_model --generate "..."`: writes on with a model trained before."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import tyro

from experiments.language_model import PRESETS
from experiments.language_model.training import NUMBERS, setup, written
from lstm_rot.training.checkpoints import Checkpoints


@dataclass(frozen=True)
class Options:
    """Write on after a text, with a model that `python -m experiments.language_model` has trained."""

    generate: str
    """the text to go on from"""
    model: str = "lstm"
    seed: int = 0
    """of the training run"""
    length: int = 500
    """bytes to write"""
    temperature: float = 0.8
    """0 always takes the likeliest byte"""
    draw: int = 0
    """another number, another text"""
    runs: str = "results/language_model"
    """where the checkpoints are"""


def command(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, prog="python -m experiments.language_model")
    try:
        print(options.generate + generated(options))
    except ValueError as error:
        sys.exit(f"language_model: {error}")


def generated(options: Options) -> str:
    """The text that follows. Raises ValueError where there is no such run, or nothing to go on from."""
    folder = Path(options.runs) / f"{options.model}-{options.seed}"
    if not (folder / NUMBERS).exists():
        there = sorted(path.parent.name for path in Path(options.runs).glob(f"*/{NUMBERS}"))
        raise ValueError(
            f"no model in {folder}: there is {', '.join(there) or 'none'} in {options.runs}; train one with "
            f"python -m experiments.language_model --models {options.model}"
        )
    told = json.loads((folder / NUMBERS).read_text())["config"]
    known = {name: value for name, value in told.items() if name not in ("model", "seed", "parameters")}
    config = replace(PRESETS["quick"], **known, parameters=told["parameters"], runs=options.runs)
    run = setup(config, options.model, options.seed)
    with Checkpoints(folder / "checkpoints", config=run.identity, keep=1) as checkpoints:
        like = jax.tree.map(
            lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
            jax.eval_shape(run.init),
            run.shardings,
        )
        restored = checkpoints.restore(like)
    if restored is None:
        raise ValueError(f"no checkpoint in {folder}: train the model again")
    text = options.generate.encode()
    return written(run.model, restored.state.params, text, options.length, options.draw, options.temperature)
