"""``pugdft predict``: the classes of images."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self, TextIO

import typer

from pugdft.cli.output import duration, given_path, say
from pugdft.machine import share_cores

if TYPE_CHECKING:
    from pugdft.inference.load import LoadedModel
    from pugdft.inference.predict import ImagePrediction

_SECONDS = 10.0

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's folder, a weights file, or a timm model.", show_default=False
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="timm model of a weights file that no run left.", show_default=False
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Images at once.", show_default="as the run evaluates")
]


class PredictionFormat(StrEnum):
    """The form of predictions: a table of two columns and more, JSON lines, or lines for people."""

    CSV = "csv"
    JSONL = "jsonl"
    TABLE = "table"


def command(
    run: ModelArgument,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH", help="Images, folders, or - for a list of paths on stdin.", show_default=False
        ),
    ],
    form: Annotated[
        PredictionFormat, typer.Option("--format", help="csv, JSON lines, or for people.")
    ] = PredictionFormat.CSV,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Number of classes for each image.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(parser=given_path, metavar="FILE", help="Write there.", show_default="stdout"),
    ] = None,
    batch_size: BatchSize = None,
    model: ModelName = None,
) -> None:
    """Predict the classes of images.

    An image that does not decode is named on stderr and left out; the exit code is then 1.

    Examples:
      pugdft predict runs/my-run photos/ --format csv --output predictions.csv
      find photos -name '*.jpg' | pugdft predict runs/my-run - --top-k 3
    """
    from pugdft.errors import RunFailed, UserError, counted

    share_cores()
    from pugdft.inference.load import load_model
    from pugdft.inference.predict import find_images, predict

    if output is not None and output.is_dir():
        raise UserError(f"--output {output}: is a folder; give a file")
    listed = [path for each in paths for path in (_paths_on_stdin() if each == "-" else [each])]
    if not listed:
        raise UserError("-: the list of paths on stdin is empty")
    images = find_images(listed, say)
    loaded = load_model(run, model)
    for note in loaded.notes:
        say(note)
    faults: list[str] = []
    with ImageProgress(len(images)) as progress:

        def left_out(fault: str) -> None:
            faults.append(fault)
            progress.say(f"left out: {fault}")

        predictions = predict(loaded, images, top_k=top_k, batch_size=batch_size, on_fault=left_out)
        # Opened at the first prediction: without any, no file is left behind.
        with ExitStack() as stack:
            writer = None
            for number, each in enumerate(predictions, start=1):
                writer = writer or _Writer(stack.enter_context(_target(output)), form, loaded, top_k)
                writer.write(each)
                progress.update(number + len(faults))
    if faults:
        raise RunFailed(f"{len(faults):,} of {counted(len(images), 'image')} left out: they do not decode")


def _paths_on_stdin() -> list[str]:
    """One path a line, in the bytes that the system gives names."""
    return [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip()]


@contextmanager
def _target(output: Path | None) -> Iterator[TextIO]:
    """Yield stdout, or a file that takes the place of ``output`` once it is complete."""
    if output is None:
        yield sys.stdout
        return
    from pugdft.errors import reason, refuse
    from pugdft.paths import readable_mode

    with refuse(OSError, lambda error: f"--output {output}: cannot be written: {reason(error)}"):
        file = NamedTemporaryFile(  # noqa: SIM115
            "w", dir=output.parent, prefix=f".{output.name}.", delete=False, encoding="utf-8", newline=""
        )
    with ExitStack() as stack:
        stack.callback(Path(file.name).unlink, missing_ok=True)
        with file:
            yield file  # type: ignore[misc]
        os.chmod(file.name, readable_mode())
        os.replace(file.name, output)


class _Writer:
    """Writes predictions in a form, one after the other."""

    def __init__(self, target: TextIO, form: PredictionFormat, loaded: LoadedModel, top_k: int) -> None:
        from pugdft.data.source import writable
        from pugdft.errors import printable

        self._target, self._form, self._writable, self._printable = target, form, writable, printable
        names = loaded.descriptions or loaded.class_names or map(str, range(loaded.num_classes))
        self._names = [writable(name) for name in names]
        self._width = max(len(printable(name)) for name in self._names)
        self._csv = csv.writer(target, lineterminator="\n")
        if form is PredictionFormat.CSV:
            later = [f"{key}_{place}" for place in range(2, top_k + 1) for key in ("class", "confidence")]
            self._csv.writerow(["path", "class", "confidence", *later])

    def write(self, prediction: ImagePrediction) -> None:
        path = self._writable(prediction.path)
        pairs = [
            (self._names[number], round(confidence, 6))
            for number, confidence in zip(prediction.classes, prediction.confidences, strict=True)
        ]
        if self._form is PredictionFormat.CSV:
            self._csv.writerow([path, *(value for pair in pairs for value in pair)])
        elif self._form is PredictionFormat.JSONL:
            first, top = dict(zip(("class", "confidence"), pairs[0], strict=True)), []
            top = [{"class": name, "confidence": confidence} for name, confidence in pairs]
            line = {"path": path, **first, **({"top": top} if len(top) > 1 else {})}
            self._target.write(json.dumps(line, ensure_ascii=False) + "\n")
        else:
            shown = "  ".join(f"{self._printable(name):<{self._width}} {c:7.2%}" for name, c in pairs)
            self._target.write(f"{shown}  {self._printable(path)}\n")


class ImageProgress:
    """Progress over images on stderr: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True, highlight=False)
        columns = ("images", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "left")
        self._live = Progress(*columns, console=console) if console.is_terminal else None
        self._total, self._done = total, 0

    def __enter__(self) -> Self:
        self._begin = self._shown = time.monotonic()
        if self._live:
            self._task = self._live.add_task("images", total=self._total)
            self._live.start()
        return self

    def update(self, done: int) -> None:
        """Show how many images are done."""
        self._done, now = done, time.monotonic()
        if self._live:
            self._live.update(self._task, completed=done, total=self._total)
        elif now - self._shown >= _SECONDS:
            self._shown = now
            left = (self._total - done) * (now - self._begin) / max(1, done)
            say(f"{done:,}/{self._total:,} images, {duration(left)} left")

    def of(self, done: int, total: int) -> None:
        """Show how many images of a number that is known only now are done."""
        self._total = total
        self.update(done)

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if self._live:
            from pugdft.errors import undriven

            self._live.console.print(undriven(text), markup=False, soft_wrap=True)
        else:
            say(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if kind is None and self._done:
            seconds = max(time.monotonic() - self._begin, 1e-9)
            from pugdft.errors import counted

            done = counted(self._done, "image")
            say(f"{done} in {duration(seconds)}: {self._done / seconds:.0f} images/s")
