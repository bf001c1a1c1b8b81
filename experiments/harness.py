"""What every experiment shares: its contract, its command line, and the JSON that it publishes.

run(config, progress) -> measurements      numbers only, what can be written as JSON
judge(measurements) -> findings            the verdict rules: code, written before the run
draw(result) -> figure                     from the published JSON alone
"""

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib

matplotlib.use("Agg")  # figures go to files

import matplotlib.pyplot as plt
import tyro
from cycler import cycler
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.claims import CLAIMS
from experiments.data import DataError

REPRODUCED, CONTRADICTED, INCONCLUSIVE, OUT_OF_REACH = VERDICTS = (
    "reproduced",
    "contradicted",
    "inconclusive",
    "out of reach here",
)
PUBLISHED = Path(__file__).parent
STYLE: dict[Any, Any] = {
    "figure.dpi": 130,
    "savefig.bbox": "tight",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    # Okabe & Ito 2008: told apart by colour-blind readers
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]),
}


class Finding(NamedTuple):
    """Our answer to a claim: our figure in words, the verdict, and the rule that gave it."""

    id: str
    ours: str
    verdict: str
    rule: str


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment. `presets` maps 'quick', 'cpu', ... to configs, which say their `seeds`, and mostly their `data`.

    One that tests no claim of a paper has no `claims`. A run may tell "hardware" and "versions" of its own.
    """

    name: str
    title: str
    claims: tuple[str, ...]
    presets: Mapping[str, Any]
    run: Callable[[Any, Progress], dict]
    judge: Callable[[dict], list[Finding]]
    draw: Callable[[dict], Figure]
    caption: str
    table: Callable[[dict], dict]  # measurements -> {"columns": [...], "rows": [[...], ...]}, and its "title"

    @property
    def published(self) -> Path:
        """The committed result; its figure lies beside it."""
        return PUBLISHED / self.name / "published.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """What every experiment's command takes; `--help` after a preset shows that preset's config."""

    preset: str = "quick"
    """quick: a minute, no network; cpu: the honest run without an accelerator"""
    publish: bool = False
    """write the JSON and the figure beside the experiment too"""
    redraw: bool = False
    """run nothing: judge and draw again from the numbers in the JSONs there are"""
    results: Path = Path("results")
    """where results go"""


class Refused(Exception):
    """The run cannot begin; the message says why and what to do."""


def main(experiment: Experiment, args: list[str] | None = None) -> None:
    """The command line of one experiment."""
    console = Console()
    try:
        options, config = _options(experiment, args)
        if options.redraw:
            for path in redraw(experiment, options.results):
                console.print(f"drawn: {path}")
            return
        writable(options.results, *[experiment.published.parent] * options.publish)
        with progress_display(console) as progress:
            result = execute(experiment, options.preset, config, options.results, progress, publish=options.publish)
    except (Refused, DataError) as error:
        sys.exit(f"{experiment.name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{experiment.name}: interrupted; nothing was written")
    report(console, result)


def _options(experiment: Experiment, args: list[str] | None) -> tuple[Options, Any]:
    """Options, and the preset's config with each field an option of its own."""
    args = sys.argv[1:] if args is None else args
    chosen, _ = tyro.cli(Options, args=[a for a in args if a not in ("-h", "--help")], return_unknown_args=True)
    if chosen.preset not in experiment.presets:
        raise Refused(f"unknown preset {chosen.preset!r}: known are {', '.join(experiment.presets)}")
    preset = experiment.presets[chosen.preset]
    both = dataclasses.make_dataclass(
        "Command", [("config", tyro.conf.OmitArgPrefixes[type(preset)], preset)], bases=(Options,), frozen=True
    )
    command = tyro.cli(both, args=args, prog=f"python -m experiments.{experiment.name}", description=experiment.title)
    empty = [field for field, value in dataclasses.asdict(preset).items() if value == ()]
    for field, value in dataclasses.asdict(command.config).items():
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) in (int, float) and not (0 < number < float("inf")):
                raise Refused(f"--{field.replace('_', '-')} {number}: give a number above 0")
        if value == () and field not in empty:
            raise Refused(f"--{field.replace('_', '-')}: give at least one")
    return command, command.config


def writable(*folders: Path) -> None:
    """Raises Refused, before the run, where results cannot be written."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise Refused(f"cannot write results to {folder} ({error}): choose a folder with --results") from error


def progress_display(console: Console) -> Progress:
    """One display for all that runs."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def execute(
    experiment: Experiment, preset: str, config: Any, results: Path, progress: Progress, *, publish: bool = False
) -> dict:
    """Runs the experiment, judges and writes: results/<name>.json and .png, and with `publish` beside it too."""
    load, start = os.getloadavg(), time.perf_counter()
    measurements = experiment.run(config, progress)
    seconds = time.perf_counter() - start
    result = {
        "experiment": experiment.name,
        "command": _command(experiment, preset, config),
        "preset": preset,
        "config": dataclasses.asdict(config),
        "seeds": config.seeds,
        **{key: measurements.pop(key) for key in ("data", "grid") if key in measurements},
        "measurements": measurements,
        "hardware": measurements.pop("hardware", None) or hardware(),
        "load": [round(x, 2) for x in load],
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "numpy", "optax", "scikit-learn")},
            **measurements.pop("versions", {}),
        },
    }
    result |= assess(experiment, _parsed(_written(measurements)))  # from what is written, as --redraw does
    write(experiment, result, results / f"{experiment.name}.json", *[experiment.published] * publish)
    return result


def assess(experiment: Experiment, measurements: dict) -> dict:
    """All of a result that follows from its measurements: the verdicts, the table, the words."""
    findings = {finding.id: finding for finding in experiment.judge(measurements)}
    return {
        "title": experiment.title,
        "claims": [{**CLAIMS[id]._asdict(), **findings[id]._asdict()} for id in experiment.claims],
        "table": experiment.table(measurements),
        "figure_caption": experiment.caption,
    }


def write(experiment: Experiment, result: dict, *paths: Path) -> None:
    """The JSON, and beside it the figure drawn from it alone; both are whole before either replaces an older one."""
    text, png = _written(result), BytesIO()
    with plt.rc_context(STYLE):
        figure = experiment.draw(_parsed(text))
        figure.savefig(png, format="png")
        plt.close(figure)
    for path in paths:
        json_part, png_part = path.with_suffix(".json.part"), path.with_suffix(".png.part")
        json_part.write_text(text, "utf-8")
        png_part.write_bytes(png.getvalue())
        json_part.replace(path)
        png_part.replace(path.with_suffix(".png"))


def read(path: Path) -> dict:
    """A result; its nulls are numbers that were not finite."""
    return _parsed(path.read_text("utf-8"))


def _written(result: dict) -> str:
    return json.dumps(_rounded(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _parsed(text: str) -> dict:
    def with_nan(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: with_nan(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [with_nan(value) for value in tree]
        return float("nan") if tree is None else tree

    return with_nan(json.loads(text))


def redraw(experiment: Experiment, results: Path) -> list[Path]:
    """Judges and draws again every result whose JSON is there, its numbers untouched. Raises Refused for none."""
    there = [path for path in (results / f"{experiment.name}.json", experiment.published) if path.exists()]
    if not there:
        raise Refused(f"nothing to redraw: neither {results / experiment.name}.json nor {experiment.published} exists")
    for path in there:
        result = read(path)
        write(experiment, result | assess(experiment, result["measurements"]), path)
    return [path.with_suffix(".png") for path in there]


def _rounded(tree: Any) -> Any:
    """Floats to five digits, so that the JSON stays small; numbers that are not finite become null."""
    if isinstance(tree, dict):
        return {key: _rounded(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_rounded(value) for value in tree]
    if isinstance(tree, float):
        return float(f"{tree:.5g}") if abs(tree) < float("inf") else None
    return tree


def _command(experiment: Experiment, preset: str, config: Any) -> str:
    """The command that gives this result, with every option that departs from the preset."""
    words = [f"python -m experiments.{experiment.name} --preset {preset}"]
    default = dataclasses.asdict(experiment.presets[preset])
    for field, value in dataclasses.asdict(config).items():
        name = field.replace("_", "-")
        if value == default[field]:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words.append(f"--{name} {' '.join(map(str, values))}")
    return " ".join(words)


def hardware() -> str:
    """The processor or accelerator, in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    return processor()


def processor() -> str:
    """The processor and its cores, in words; starts no backend."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"


def report(console: Console, result: dict) -> None:
    """The table of measurements, then each claim: the paper's figure, ours, the verdict."""
    title = result["table"].get("title", result["title"])
    table = Table(title=escape(f"{title}   ({result['seconds']} s)"), title_justify="left")
    for column in result["table"]["columns"]:
        table.add_column(column, overflow="fold")
    for row in result["table"]["rows"]:
        table.add_row(*(escape(str(cell)) for cell in row))
    console.print(table)
    if not result["claims"]:
        return
    claims = Table(show_lines=True)
    for column in ("claim", "the paper", "ours", "verdict"):
        claims.add_column(column, overflow="fold")
    for claim in result["claims"]:
        claims.add_row(*(escape(claim[key]) for key in ("id", "paper", "ours", "verdict")))
    console.print(claims)
