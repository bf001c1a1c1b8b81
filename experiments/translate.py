"""`python -m experiments.translate`: sentences given, or standard input line by line, by a translator trained before.

echo "Ein Hund rennt." | python -m experiments.translate
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import tyro

from experiments.files import DataError
from experiments.harness import Refused
from experiments.seq2seq.training import RECIPE, Net, restored
from experiments.seq2seq.translating import BATCH, Translation, translate
from experiments.translation import examples
from experiments.translation.pairs import not_utf8

TOGETHER = 16 * BATCH  # lines read before any is translated, of which those of one length go together; typed, one


@dataclass(frozen=True)
class Options:
    """Translate sentences, or standard input line by line, with what `python -m experiments.seq2seq` has trained."""

    sentences: tyro.conf.Positional[tuple[str, ...]] = ()
    """none: lines of standard input; an empty one gives an empty one"""
    model: tuple[str, ...] = ()
    """folders of translators, of several an ensemble; without: that in --runs which was trained last"""
    runs: str = "results/seq2seq"
    """where translators are"""
    beam: int = 12
    """hypotheses looked at; 1: greedy"""
    alpha: float = 0.0
    """of the length's power by which log p is divided; 0: not (2014), 0.6: Vaswani et al. 2017"""
    best: int = 0
    """above 0: so many hypotheses of each sentence, a line each, with their scores"""


def main(args: list[str] | None = None) -> None:
    options = tyro.cli(Options, args=args, prog="python -m experiments.translate")
    try:
        check(options)
        nets = [restored(folder) for folder in options.model or [newest(options.runs)]]
        lines = iter(options.sentences) if options.sentences else read(sys.stdin.buffer)
        typed = not options.sentences and sys.stdin.isatty()
        for some in chunks(checked(lines, nets[0], options), 1 if typed else TOGETHER):
            for said in translated(nets, some, options):
                print(said, flush=True)
    except (Refused, DataError) as error:
        sys.exit(f"translate: {error}")


def check(options: Options) -> None:
    """Raises Refused for numbers that make no search."""
    if options.beam < 1:
        raise Refused(f"--beam {options.beam} keeps no hypothesis: give 1, which is greedy, or more")
    if not 0 <= options.best <= options.beam:
        raise Refused(f"--best {options.best} of a beam of {options.beam}: give 0 to {options.beam}")
    if not options.alpha >= 0:
        raise Refused(f"--alpha {options.alpha}: give 0, or above it to favour longer hypotheses")


def newest(runs: str) -> Path:
    """The folder with the newest checkpoint, which it tells. Raises Refused where there is none."""
    there = [path.parent for path in Path(runs).glob(f"*/{RECIPE}")]
    saved = [step for folder in there for step in folder.glob("checkpoints/*") if step.name.isdigit()]
    if not saved:
        raise Refused(f"no translator in {runs}: train one with python -m experiments.seq2seq, or name its --model")
    folder = max(saved, key=lambda step: step.stat().st_mtime).parents[1]
    print(f"translated by {folder}", file=sys.stderr)
    return folder


def read(stream: BinaryIO) -> Iterator[str]:
    """Lines of UTF-8. Raises DataError, naming the line, for other bytes."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise not_utf8("standard input", number, error) from error


def checked(lines: Iterator[str], net: Net, options: Options) -> Iterator[str]:
    """The lines. Raises DataError, naming the line, for one that the net cannot read."""
    origin = "sentence" if options.sentences else "standard input, line"
    for number, line in enumerate(lines, 1):
        where = f"{origin} {number}"
        try:
            line.encode()
            if line.strip():
                examples.sentence(line.strip(), net.vocabularies.source, limit=net.recipe.limit, where=where)
        except UnicodeEncodeError as error:  # of a command line
            raise DataError(f"{where} is not UTF-8 ({error})") from error
        except ValueError as error:
            raise DataError(str(error)) from error
        yield line


def chunks(lines: Iterator[str], size: int) -> Iterator[list[str]]:
    """`size` lines at once; what comes before a line that cannot be read is handed on before that is said."""
    some: list[str] = []
    try:
        for line in lines:
            some.append(line)
            if len(some) == size:
                yield some
                some = []
    except DataError:
        if some:
            yield some
        raise
    if some:
        yield some


def translated(nets: list[Net], lines: list[str], options: Options) -> Iterator[str]:
    """What is printed: a translation a line, or the best of each with their scores; of an empty line an empty one."""
    answers = translate(nets, lines, width=options.beam, alpha=options.alpha)
    for line, hypotheses in zip(lines, answers, strict=True):
        if not options.best or not line.strip():
            yield on_one_line(hypotheses[0].text) if hypotheses else ""
        else:
            yield from map(scored, hypotheses[: options.best])


def scored(hypothesis: Translation) -> str:
    return f"{hypothesis.score:8.3f}  {on_one_line(hypothesis.text)}"


def on_one_line(text: str) -> str:
    """Byte pairs may write the end of a line too."""
    return " ".join(text.splitlines())


if __name__ == "__main__":
    main()
