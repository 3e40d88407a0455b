"""``pugdft sharpness``: how sharp the minima of runs are, with error bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pugdft.cli import pictures
from pugdft.cli.output import duration, emit, say
from pugdft.cli.predict import ModelName
from pugdft.errors import UserError, printable, refuse, undriven
from pugdft.machine import share_cores

if TYPE_CHECKING:
    from pugdft.analysis.points import Sample
    from pugdft.analysis.sharpness import SharpnessOptions
    from pugdft.inference.load import LoadedModel
    from pugdft.leaderboard.sharpness import StoredSharpness
    from pugdft.records import StoredRun


def command(
    records: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Runs; also weights of no run: a file, a timm folder, a timm or Hub name.",
            show_default=False,
        ),
    ],
    split: Annotated[Literal["train", "test"], typer.Option(help="Whose images.")] = "train",
    images: pictures.Images = 256,
    sample_seed: Annotated[
        int, typer.Option("--sample-seed", min=0, max=pictures.MOST_SEED, help="Which images.")
    ] = 0,
    rho: Annotated[float, typer.Option(help="Radius of the ball.")] = 0.05,
    adaptive_rho: Annotated[float, typer.Option("--adaptive-rho", help="Radius of ASAM's ball.")] = 0.5,
    products: Annotated[int, typer.Option(help="Products of an eigenvalue at most.")] = 20,
    probes: Annotated[int, typer.Option(help="Random vectors of the trace at most.")] = 15,
    batch: Annotated[str, typer.Option(metavar="N|ALL", help="Images of each ball.")] = "all",
    batch_norm: Annotated[
        Literal["fixed", "batch"], typer.Option("--batch-norm", help="BatchNorm's statistics.")
    ] = "fixed",
    spectrum: Annotated[bool, typer.Option("--spectrum", help="Also store the spectrum.")] = False,
    parameters: Annotated[
        Literal["trained", "all"], typer.Option(help="Which parameters count.")
    ] = "trained",
    precision: Annotated[Literal["fp32", "fp64"], typer.Option(help="Of all products.")] = "fp32",
    data: pictures.Data = None,
    output: pictures.Output = None,
    plan: pictures.Plan = False,
    minutes: pictures.Minutes = None,
    progress: pictures.ProgressOption = "text",
    model_name: ModelName = None,
) -> None:
    """Measure how sharp the minima of runs are.

    The largest eigenvalue of the Hessian, also in units of the weights; its trace; how far the loss rises at
    worst in a ball, and how much of that one step of SAM finds. Each run's numbers are stored beside its
    record, where `pugdft leaderboard` finds them; numbers that are there are shown again. Of several runs it
    says which optimizer ends flatter. Weights of no run need --data; their numbers go to the folder analysis.

    Examples:
      pugdft sharpness runs/SGD runs/SAM --images 512 --spectrum
      pugdft sharpness mobilenetv4_conv_small --data images
    """
    pictures.check_minutes(minutes)
    share_cores()
    from pugdft.analysis.files import read_analysis, write_analysis
    from pugdft.analysis.overlay import folder_of, open_models, weights_sha256
    from pugdft.analysis.points import take_sample
    from pugdft.analysis.sharpness import SharpnessOptions, measure, num_steps, sharpness_digest
    from pugdft.figures.redraw import damaged
    from pugdft.leaderboard.sharpness import StoredSharpness, which_is_flatter

    options = SharpnessOptions(
        rho, adaptive_rho, products, probes, _batch(batch), batch_norm, parameters,
        precision, spectrum,
    )  # fmt: skip
    options.check(images)
    # One after the other: runs of different data may be measured, but not compared.
    jobs = [open_models([name], model_name)[0] for name in records]
    watch = _Watch(num_steps(options) * len(jobs), minutes, progress)
    notes: dict[str, None] = {}
    own: list[tuple[StoredRun, StoredSharpness]] = []
    for number, loaded in enumerate(jobs):
        sample = take_sample(loaded, split, images, sample_seed, data=data, on_message=say)
        if plan:
            _print_plan(loaded, sample, options, len(jobs))
            return
        folder = output or folder_of(loaded)
        if loaded.run is None or loaded.run.record.weights_sha256 != weights_sha256(loaded):
            # `leaderboard check` refuses numbers beside a record that are of other weights.
            folder = folder / "analysis"
        watch.done = float(number * num_steps(options))
        path = _stored(folder, sharpness_digest(loaded, sample, options))
        if path is None:
            pictures.check_writable(folder)
            try:
                measured = measure(loaded, sample, options, watch)
            except _TimeIsOverError:
                say(f"--minutes: the time is over; {number} of {len(jobs)} runs are measured")
                raise typer.Exit(pictures.OUT_OF_TIME) from None
            if measured.arrays:
                parts = "spectrum", measured.digest, measured.arrays, measured.facts
                typer.echo(printable(str(write_analysis(folder / "analysis", *parts))))
            path = write_analysis(folder, "sharpness", measured.digest, {}, measured.facts)
        facts = read_analysis(path).facts
        with _remedied(path), damaged(path):
            lines = _lines(facts)
            notes |= dict.fromkeys(str(each) for each in facts["caveats"])
        if loaded.run and (values := StoredSharpness.of(facts, loaded.run)):
            own.append((loaded.run, values))
        typer.echo(undriven("\n".join(lines)))
        typer.echo(printable(str(path)))
    for line in notes:
        say(f"note: {line}")
    for line in which_is_flatter(own):
        typer.echo(printable(line))


def _batch(text: str) -> int | None:
    if text.lower() == "all":
        return None
    if not text.isascii() or not text.isdigit():
        raise UserError(f'--batch {printable(text)}: must be a number of images, or "all"')
    return int(text)


def _stored(folder: Path, digest: str) -> Path | None:
    """The file of a measurement that was made before."""
    from pugdft.analysis.files import analysis_stem, read_analysis

    stem = analysis_stem(folder, "sharpness", digest)
    path = stem.parent / f"{stem.name}.yaml"
    if not path.is_file():
        return None
    with _remedied(path):
        stored = read_analysis(path)
    if stored.facts["digest"] != digest:
        return None
    say(f"measured before: {path}")
    return path


def _remedied(path: Path) -> AbstractContextManager[None]:
    """A context that says how to get rid of a damaged file."""
    return refuse(UserError, lambda error: f"{error}\nWithout {path.name} the same command measures again")


class _TimeIsOverError(Exception):
    """``--minutes`` ended."""


class _Watch:
    """Prints progress, and ends the measurement when the time is over."""

    def __init__(self, total: float, minutes: float | None, form: str) -> None:
        self.done, self._total, self._form = 0.0, total, form
        self._begin = self._shown = time.monotonic()
        self._deadline = float("inf") if minutes is None else self._begin + 60 * minutes

    def __call__(self, share: float) -> None:
        now, self.done = time.monotonic(), self.done + share
        if now >= self._deadline:
            raise _TimeIsOverError
        if now - self._shown < (0.5 if self._form == "json" else 10.0):
            return
        self._shown = now
        if self._form == "json":
            emit("progress", done=round(self.done, 2), total=self._total)
        else:
            say(f"{self.done:.0f} of at most {self._total:.0f} passes")


def _print_plan(loaded: LoadedModel, sample: Sample, options: SharpnessOptions, num_runs: int) -> None:
    """Print passes and minutes, from the time of one product and two gradients."""
    from pugdft.analysis.sharpness import planned_seconds

    passes, seconds = planned_seconds(loaded, sample, options)
    sys.stdout.write(
        f"{num_runs} × at most {passes} products and gradients over {len(sample)} images; "
        f"about {duration(seconds * num_runs)}\n"
    )


def _lines(facts: Mapping[str, Any]) -> list[str]:
    """A table of one run's numbers."""
    numbers, sample, record = facts["numbers"], facts["sample"], facts["records"][0]
    first, adaptive, trace = numbers["lambda1"], numbers["adaptive_lambda1"], numbers["trace"]
    quarters = f"; quarters ± {first['quarters_sd']:.2g}" if "quarters_sd" in first else ""
    rows = [
        ("loss", numbers["loss"], f"gradient norm {numbers['gradient_norm']:.3g}"),
        ("λ1", first["value"], f"residual {first['residual']:.1g}{quarters}"),
        ("adaptive λ1", adaptive["value"], f"residual {adaptive['residual']:.1g}; of |w| H |w|"),
        ("trace", trace["value"], f"95 % CI ± {trace['half_width']:.2g}; {trace['probes']} probes"),
        *(_rise_row(name, numbers[key]) for name, key in _RISES),
        ("smallest λ", first["smallest_at_most"], "an upper bound"),
    ]
    title = (
        record["id"]
        if record["seed"] is None
        else f"{record['label']}, seed {record['seed']}: {record['id']}"
    )
    lines = [printable(title), f"  {sample['images']} {sample['split']} images"]
    return lines + [f"  {name:<19} {value:>11.5g}  {note}" for name, value, note in rows]


_RISES: Sequence[tuple[str, str]] = (
    ("worst rise", "worst_rise"),
    ("adaptive worst rise", "adaptive_worst_rise"),
)


def _rise_row(name: str, rise: Mapping[str, Any]) -> tuple[str, float, str]:
    share = "" if rise["one_step_share"] is None else f"; one step finds {rise['one_step_share']:.0%}"
    mean = f"; mean of {rise['batches']} batches" if rise["batches"] > 1 else ""
    return name, rise["value"], f"ρ = {rise['rho']:g}{share}{mean}"
