"""`python -m experiments`: every experiment, and one page of all that is known, results/index.html."""

import dataclasses
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape

from experiments import (
    bottleneck,
    cifar,
    crash,
    degradation,
    dial,
    gradient_flow,
    language_model,
    lesion,
    mixing,
    newton,
    pipeline,
    recall,
    rotation,
    scale,
    seq2seq,
    speed,
    streams,
    very_deep,
)
from experiments.claims import CLAIMS
from experiments.data import DataError
from experiments.harness import Experiment, Refused, execute, progress_display, writable
from experiments.page import build
from lstm_rot.training.run import Stopped

EXPERIMENTS = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (
        gradient_flow,
        rotation,
        cifar,
        lesion,
        streams,
        newton,
        mixing,
        recall,
        dial,
        degradation,
        language_model,
        seq2seq,
    )
}  # the quickest first, so that there is soon something to see
BESIDE = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (bottleneck, pipeline, crash, very_deep, scale, speed)
}  # of the machine and not of any data


@dataclasses.dataclass(frozen=True)
class All:
    """Run the experiments, and write the page of their results. Ctrl-C keeps what is done."""

    preset: str = "quick"
    """quick: a minute each, no network; cpu: the honest run without an accelerator"""
    only: tuple[str, ...] = ()
    """these experiments alone"""
    list: bool = False
    """run nothing: name the experiments and their claims"""
    publish: bool = False
    """write each JSON and figure beside its experiment too"""
    results: Path = Path("results")
    """where results go"""


def main(args: list[str] | None = None) -> None:
    options, console = tyro.cli(All, args=args, prog="python -m experiments"), Console()
    if options.list:
        for experiment in known().values():
            console.print(f"{experiment.name}: {experiment.title} ({', '.join(experiment.claims) or 'no claim'})")
        return
    try:
        chosen = select(options)
        writable(options.results, *[each.published.parent for each in chosen if options.publish])
    except Refused as error:
        sys.exit(f"experiments: {error}")
    done: set[str] = set()
    failures: list[str] = []
    page = options.results / "index.html"
    try:
        with progress_display(console) as progress:
            task = progress.add_task("experiments", total=len(chosen))
            for experiment in chosen:
                config = experiment.presets[options.preset]
                try:
                    result = execute(
                        experiment, options.preset, config, options.results, progress, publish=options.publish
                    )
                except DataError as error:
                    failures.append(f"{experiment.name}: {error}")
                    continue
                done.add(experiment.name)
                said = [f"{claim['id']}: {claim['verdict']}" for claim in result["claims"]]
                for words in said or [result["table"].get("title", result["title"])]:
                    console.print(escape(f"{words}   ({experiment.name}, {result['seconds']} s)"))
                write_page(options.results, done)
                progress.advance(task)
    except (KeyboardInterrupt, Stopped):
        write_page(options.results, done)
        sys.exit(f"interrupted: kept {', '.join(sorted(done)) or 'nothing'}; see {page}")
    write_page(options.results, done)
    console.print(f"all results: {page}")
    if failures:
        sys.exit("\n".join(failures))


def known() -> dict[str, Experiment]:
    """By name, in the order in which they run."""
    return EXPERIMENTS | BESIDE


def select(options: All) -> list[Experiment]:
    """The experiments to run. Raises Refused for unknown ones and unknown presets, naming the known."""
    there = known()
    unknown = [name for name in options.only if name not in there]
    if unknown:
        raise Refused(f"unknown experiment {unknown[0]!r}: known are {', '.join(there)}")
    chosen = [there[name] for name in options.only or there if options.only or _runs_here(name)]
    for experiment in chosen:
        if options.preset not in experiment.presets:
            raise Refused(
                f"unknown preset {options.preset!r} of {experiment.name}: known are {', '.join(experiment.presets)}"
            )
    return chosen


def _runs_here(name: str) -> bool:
    """The TPU's compiler is no part of a plain installation."""
    return name != scale.EXPERIMENT.name or find_spec("libtpu") is not None


def write_page(results: Path, fresh: set[str]) -> None:
    """The page: of each experiment this run's result, else an earlier one's in `results`, else the published.

    A result that cannot be read, or has lost its figure, is passed over.
    """
    shown = []
    order = list(CLAIMS)
    first = {name: order.index(each.claims[0]) if each.claims else len(order) for name, each in known().items()}
    for experiment in sorted(known().values(), key=lambda each: first[each.name]):
        mine = results / f"{experiment.name}.json"
        for path, origin in (
            (mine, "this run" if experiment.name in fresh else "an earlier run"),
            (experiment.published, "the published result"),
        ):
            figure = path.with_suffix(".png")
            try:
                result = json.loads(path.read_text("utf-8"))
            except (OSError, json.JSONDecodeError):
                continue
            if figure.exists():
                shown.append(result | {"origin": origin, "figure": str(figure.resolve())})
                break
    seen = {claim["id"] for result in shown for claim in result["claims"]}
    pending = [claim._asdict() for claim in CLAIMS.values() if claim.id not in seen]
    build(shown, results / "index.html", pending=pending)


if __name__ == "__main__":
    main()
