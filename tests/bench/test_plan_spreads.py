"""``bench --plan``: which differences its seeds and test images can show; and what it tells its runs."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from ranked_records import networks
from rich.console import Console
from run_records import SAM, SGD, record, stored

from pugdft.bench.cell import BenchCell
from pugdft.bench.estimate import TYPICAL, Estimate, Probe, estimate
from pugdft.bench.plan import Plans, write_plan
from pugdft.cli.bench_view import print_plan
from pugdft.config.load import load_recipe
from pugdft.config.schema import Recipe
from pugdft.leaderboard.power import Plan
from pugdft.leaderboard.stats import EntryScores, compare_all
from pugdft.training import record_writer
from pugdft.training.launchers import PLANNED


def cells(folder: Path, num_seeds: int = 3) -> list[BenchCell]:
    return [
        BenchCell(
            spec["name"], seed, load_recipe(record(spec, seed).recipe), folder / f"{spec['name']}-{seed}"
        )
        for spec in (SGD, SAM)
        for seed in range(num_seeds)
    ]


def prober(recipe: Recipe) -> Probe:
    return Probe(1.0, 1.0, 1.0, 2, 10, 10, 700, test_split_images=500)


def said(made: Estimate) -> str:
    screen = io.StringIO()
    print_plan(made, Console(file=screen, width=200, soft_wrap=True))
    return " ".join(screen.getvalue().split())


def test_before_any_cell_has_finished_a_range_of_spreads_is_assumed_and_said(tmp_path: Path) -> None:
    made = estimate(cells(tmp_path), tmp_path, prober)
    assert (made.spreads, made.num_test_images) == (TYPICAL, 500)
    expected = [
        Plan(seeds, images**2 / 500).detectable_difference(3)
        for seeds, images in zip(TYPICAL.seeds, TYPICAL.images, strict=True)
    ]
    assert made.detectable == pytest.approx(expected)
    text = said(made)
    low, high = (f"{100 * each:.2g}" for each in expected)
    assert f"3 seeds and 500 test images find a true difference of {low} to {high} points" in text
    assert "no cell has finished yet" in text


def test_finished_cells_say_how_much_seeds_and_images_spread(tmp_path: Path) -> None:
    tables = {"sgd": networks(1, 3, 500), "sam": networks(2, 3, 500, gain=0.5)}
    for spec in (SGD, SAM):
        for seed, row in enumerate(tables[str(spec["name"])]):
            stored(tmp_path, row, spec, seed)
    made = estimate(cells(tmp_path), tmp_path, prober)
    pair = compare_all(
        [
            EntryScores({seed: float(row.mean()) for seed, row in enumerate(table)}, dict(enumerate(table)))
            for table in tables.values()
        ]
    )[0]
    assert made.spreads.are_measured
    assert made.spreads.seeds[0] == pytest.approx(math.sqrt(pair.seed_variance))
    assert made.spreads.images[0] == pytest.approx(math.sqrt(pair.spread.images * 500))
    assert (
        made.detectable[0]
        == made.detectable[1]
        == pytest.approx(Plan.of(pair).detectable_difference(3), rel=0.2)
    )
    without_images = Plan(made.spreads.seeds[0]).detectable_difference(3)
    assert made.detectable[0] > without_images
    assert "as those of the finished cells do" in said(made)


def test_one_seed_shows_nothing(tmp_path: Path) -> None:
    made = estimate(cells(tmp_path, 1), tmp_path, prober)
    assert made.detectable == (math.inf, math.inf)
    assert "One seed cannot tell optimizers apart" in said(made)


def test_long_optimizers_stay_readable_on_a_narrow_terminal(tmp_path: Path) -> None:
    made = estimate(cells(tmp_path), tmp_path, prober)
    long = [
        line.__class__(**{**vars(line), "optimizer": f"{line.optimizer}[rho=0.1,base.lr=0.003]"})
        for line in made.lines
    ]
    screen = io.StringIO()
    print_plan(
        Estimate(**{**vars(made), "lines": tuple(long)}), Console(file=screen, width=70, soft_wrap=True)
    )
    assert any("sam[rho=0.1,base.lr=0.00" in line for line in screen.getvalue().splitlines())


def test_a_run_records_the_seeds_and_optimizers_that_were_planned_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = (
        replace(each, folder=tmp_path / f"{each.optimizer}-s{each.seed}-0a1b2c3d") for each in cells(tmp_path)
    )
    write_plan(tmp_path, list(named))
    found, _ = Plans(tmp_path).new_cells(())
    texts = {cell.planned for cell in found.values()}
    assert [json.loads(text) for text in texts] == [{"seeds": [0, 1, 2], "optimizers": 2}]
    monkeypatch.setenv(PLANNED, texts.pop())
    assert record_writer._planned() == {"planned": {"seeds": [0, 1, 2], "optimizers": 2}}
    monkeypatch.delenv(PLANNED)
    assert record_writer._planned() == {}


def test_misspelt_keys_of_a_bench_file_are_named(tmp_path: Path) -> None:
    from pugdft.bench.grid import build_matrix
    from pugdft.errors import UserError

    (tmp_path / "b.yaml").write_text("recipes: [quickstart]\noptimisers: [sgd, sam]\n")
    with pytest.raises(UserError, match='Did you mean "optimizers"'):
        build_matrix([str(tmp_path / "b.yaml")])
