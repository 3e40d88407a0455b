"""The leaderboard's formats: what each shows, leaves out, and never lets through."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pugdft.leaderboard import as_csv, as_json, as_latex, as_markdown, print_table
from pugdft.leaderboard.columns import SECTIONS, columns, fit, text_columns
from pugdft.leaderboard.entry import Entry, Group, PublishedSource, Summary, TuningBudget, Versus
from pugdft.leaderboard.formats.text import escape_latex, escape_markdown

HOSTILE = (
    '=cmd|\' /C calc\'!A0 \\input{x} $x$ #1 ~^_%&{} <b onclick="x">[a](http://e) `c` \x1b[31m\u202e\n@x | "q"'
)


def summary(mean: float, spread: float | None = 0.0015) -> Summary:
    interval = None if spread is None else (mean - 2 * spread, mean + 2 * spread)
    return Summary(mean, spread, interval)


def entry(label: str, top1: float, ranks: tuple[int, int], **changes: Any) -> Entry:
    """An entry that was measured in every respect."""
    made = Entry(
        label=label,
        status="measured",
        spec={"name": label},
        rank_low=ranks[0],
        rank_high=ranks[1],
        num_seeds=3,
        summaries={
            "top1": summary(top1),
            "top5": summary(0.99),
            "loss": summary(0.31234),
            "ece": summary(0.0213),
        },
        best_test_top1=top1 + 0.002,
        gradient_passes=200_000.0,
        train_seconds=7440.0,
        images_per_second=1234.5,
        peak_memory_bytes=13_207_024_435.0,
        top1_at_equal_passes=top1 - 0.004,
        top1_at_equal_seconds=top1 - 0.005,
        tuning=TuningBudget(9, 12_345.0),
        mean_perturbation_norm=0.05,
        mean_gradient_cosine=0.87,
        scores={0: top1 - 0.001, 7: top1 + 0.001},
        records=(f"{label}-s0", f"{label}-s7"),
    )
    return replace(made, **changes)


SAM = entry("sam", 0.9200, (1, 2), versus_best=Versus(-0.0031, 0.2134, False, 7))
SGD = entry("sgd", 0.9, (3, 3), gradient_passes=1e5, versus_best=Versus(-0.0231, 0.0002, True, None))
FAILED = Entry(label="vasso", status="measured", spec={}, unfinished={"failed": 1})
SOURCE = PublishedSource("A Paper", "2110.00199", 2022, "IV", "32 px, 200 epochs", "provenance doubtful")
REPORTED = Entry(
    label="ngd",
    status="reported",
    spec={"name": "ngd"},
    num_seeds=3,
    summaries={"top1": Summary(0.7604, 0.0008)},
    source=SOURCE,
)


def group(*entries: Entry, **changes: Any) -> Group:
    made = Group(
        dataset="cifar100",
        model="resnet18.tv_in1k",
        protocol="224 px, 100 epochs",
        recipe={"train": {"epochs": 100}},
        entries=entries or (entry("pugd", 0.9231, (1, 2)), SAM, SGD, FAILED),
        equal_passes=100_000.0,
        equal_seconds=3720.0,
    )
    return replace(made, **changes)


def table(*groups: Group, width: int = 120, full: bool = True, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    print_table(groups, console, full)
    return console.file.getvalue()  # type: ignore[attr-defined]


def words(text: str) -> str:
    """Text without its line breaks."""
    return " ".join(text.split())


def hostile_groups() -> list[Group]:
    bad = entry(HOSTILE, 0.9, (1, 1), notes=(HOSTILE,), records=(HOSTILE,), spec={HOSTILE: HOSTILE})
    doubtful = replace(
        REPORTED, label=HOSTILE, source=PublishedSource(HOSTILE, HOSTILE, 1, HOSTILE, HOSTILE, HOSTILE)
    )
    return [group(bad, SGD, doubtful, dataset=HOSTILE, model=HOSTILE, protocol=HOSTILE, notes=(HOSTILE,))]


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_table_fits_and_names_every_column_that_it_leaves_out(width: int) -> None:
    shown = group()
    text = table(shown, width=width)
    assert max(map(len, text.splitlines())) <= width
    kept, left_out = fit(shown, width)
    head, _, _ = text.partition("─")
    for column in kept:
        assert all(part in head for part in column.heading.split("\n"))
    assert {"rank", "optimizer"} <= {column.name for column in kept}
    assert any(column.is_ranked for column in kept)
    if left_out:
        assert f"No room for: {', '.join(column.name for column in left_out)};" in words(text)
        assert max(each.importance for each in kept) < min(each.importance for each in left_out)
    else:
        assert "No room" not in text


def test_a_wide_table_shows_every_column_in_percent_and_readable_units() -> None:
    row = next(line.split() for line in table(group(), width=200).splitlines() if " sam  " in line)
    assert " ".join(row) == (
        "1–2 sam 3 92.00 ± 0.15 91.70–92.30 99.00 0.3123 2.13 200.0k 2h04 1,234 12.3 91.60 91.50 9 0.05 0.87"
    )


@pytest.mark.parametrize("metric", ["top1", "ece"])
def test_every_column_has_a_place_and_fields_and_names_are_unique(metric: str) -> None:
    chosen = columns(metric)
    for names in ([each.field for each in chosen], [each.name for each in chosen]):
        used = [name for name in names if name]
        assert len(used) == len(set(used))
    assert {column.section for column in chosen} == set(SECTIONS)
    assert all(column.field or column.name for column in chosen)
    assert all(column.help for column in chosen if column.page)


def test_columns_in_which_nobody_has_anything_are_left_out() -> None:
    bare = Entry(
        label="sgd",
        status="measured",
        spec={},
        rank_low=1,
        rank_high=1,
        num_seeds=1,
        summaries={"top1": Summary(0.9)},
    )
    names = [column.name for column in text_columns(group(bare, equal_passes=None, equal_seconds=None))]
    assert names == ["rank", "optimizer", "seeds", "↑ top-1 %"]


@pytest.mark.parametrize(
    ("metric", "name", "value"),
    [
        ("top1", "↑ top-1 %", "92.00 ± 0.15"),
        ("top5", "↑ top-5 %", "99.00 ± 0.15"),
        ("loss", "↓ loss", "0.3123 ± 0.0015"),
        ("ece", "↓ ECE %", "2.13 ± 0.15"),
    ],
)
def test_the_ranking_metric_is_marked_with_its_direction_and_alone_has_a_spread(
    metric: str, name: str, value: str
) -> None:
    chosen = text_columns(group(metric=metric))
    assert [column.name for column in chosen if column.is_ranked] == [name]
    assert [column.name for column in chosen if column.name[0] in "↑↓"] == [name]
    assert [column.cell(SAM) for column in chosen if "±" in column.cell(SAM)] == [value]


def test_figures_at_equal_cost_say_at_which() -> None:
    text = table(group())
    assert "at 100.0k" in text
    assert "at 62m" in text
    assert "At 100,000 passes and at 62m of training, the cheapest entry's cost" in words(text)
    assert "bench --budget passes" in words(text)
    without = table(group(equal_passes=None, equal_seconds=None))
    assert "bench --budget passes" not in without


def test_the_tied_best_stand_in_bold_on_a_terminal_and_nobody_does_alone() -> None:
    def bold(*groups: Group) -> list[str]:
        text = table(*groups, force_terminal=True, color_system="standard")
        return [label for label in ("pugd", "sam", "sgd", "vasso") if f"\x1b[1m{label}" in text]

    assert bold(group()) == ["pugd", "sam"]
    assert bold(group(entry("sgd", 0.9, (1, 1)))) == []


def test_unfinished_runs_doubts_and_notes_stand_below() -> None:
    noted = replace(SAM, unfinished={"diverged": 2, "oom": 1}, notes=("seed 0 ran 2 times",))
    text = words(table(group(SGD, noted, FAILED, notes=("2 different sets of weights",))))
    assert "sam: 2 diverged, 1 oom; not in its mean." in text
    assert "sam: seed 0 ran 2 times." in text
    assert "vasso: 1 failed; none completed." in text
    assert "2 different sets of weights." in text


def test_a_tie_with_the_best_says_how_many_seeds_would_tell() -> None:
    text = words(table(group()))
    assert "undecided: sam vs pugd (best): −0.31 points, p = 0.21; if it is real, 7 more seeds each" in text
    # Of both together: seven times twice 7,440 s.
    assert "would tell (28h56 of training); that is a further look: plan the number now" in text
    assert "and rank then with --looks 2." in text
    ranged = replace(SAM, versus_best=Versus(-0.0031, 0.2134, False, 7, (4, 19)))
    text = words(table(group(entry("pugd", 0.9231, (1, 2)), ranged)))
    assert "4 to 19 more seeds each would tell (16h32 to 78h32 of training)" in text
    open_ended = replace(SAM, versus_best=Versus(-0.0031, 0.2134, False, 7, (4, None)))
    text = words(table(group(entry("pugd", 0.9231, (1, 2)), open_ended)))
    assert "4 or many more seeds each would tell (16h32 of training)" in text
    assert "sgd vs" not in text


@pytest.mark.parametrize(
    ("versus", "said"),
    [
        (Versus(-0.0031, None, False, None), "sam vs pugd (best): −0.31 points."),
        (Versus(-0.0031, 0.5, False, 1), "p = 0.5."),
        (Versus(-0.0031, 0.2, False, 1), "p = 0.2; if it is real, 1 more seed each would tell"),
        (Versus(-0.00001, 1.0, False, None), "sam vs pugd (best): +0.00 points, p = 1."),
    ],
)
def test_a_tie_claims_only_what_is_known(versus: Versus, said: str) -> None:
    best = entry("pugd", 0.9231, (1, 2))
    assert said in words(table(group(best, replace(SAM, versus_best=versus))))


def test_a_difference_in_loss_has_its_own_unit() -> None:
    best = entry("pugd", 0.9231, (1, 2))
    tied = replace(SAM, versus_best=Versus(0.0123, 0.2, False, 4))
    assert "sam vs pugd (best): +0.0123 loss, p = 0.2" in words(table(group(best, tied, metric="loss")))


def test_many_ties_are_counted_after_the_fifth() -> None:
    ties = [replace(SAM, label=f"sam{number}") for number in range(8)]
    text = table(group(entry("pugd", 0.9231, (1, 9)), *ties))
    assert text.count("vs pugd (best)") == 5
    assert "; and 3 more." in text
    assert text.count("more seeds each") == 1, "said of the nearest alone"


@pytest.mark.parametrize(
    ("num_seeds", "sentence", "has_ties"),
    [
        ((1, 1), "One seed each: no difference can be claimed.", False),
        ((3, 1), "An optimizer with one seed shares a range with all.", False),
        (
            (3, 3),
            "comparison over seeds and test images (equal seeds are pairs, Holm over all pairs, 5 %)",
            True,
        ),
    ],
)
def test_the_words_below_claim_no_more_than_the_seeds(
    num_seeds: tuple[int, int], sentence: str, has_ties: bool
) -> None:
    best = entry("pugd", 0.9231, (1, 2), num_seeds=num_seeds[0])
    text = words(table(group(best, replace(SAM, num_seeds=num_seeds[1]))))
    assert sentence in text
    assert ("undecided" in text) == has_ties
    assert "top-1 is the last epoch's on the test split" in text


@pytest.mark.parametrize("entries", [(SGD,), (SGD, FAILED), (SGD, replace(SAM, summaries={}))])
def test_one_entry_with_the_metric_is_nothing_to_compare(entries: tuple[Entry, ...]) -> None:
    text = table(group(*entries))
    assert "Nothing to compare with: fewer than two optimizers have a result." in text
    assert "Holm" not in text


def test_what_figures_mean_is_said_once_for_all_groups() -> None:
    text = words(table(group(), group(dataset="cifar10")))
    assert text.count("Holm over all pairs, 5 %)") == 1
    assert text.count("never ranks") == 1


def test_reported_rows_stand_apart_below_without_rank_or_interval() -> None:
    text = table(group(SGD, SAM, REPORTED), width=200)
    above, heading, below = text.partition("reported by others, not ranked: other code, other protocol")
    assert heading
    assert "ngd" not in above
    row = next(line for line in below.splitlines() if line.startswith("ngd"))
    assert words(row) == "ngd 3 76.04 ± 0.08 [1] table IV 32 px, 200 epochs; caveat: provenance doubtful"
    assert "[1] A Paper, arXiv 2110.00199 (2022)" in below
    assert "reported by others, not ranked" not in table(group())


def test_brackets_are_text_and_no_record_reaches_the_terminals_controls() -> None:
    label = "sam[bold]x[/bold][link=http://evil]:boom:\x1b]8;;http://evil\x1b\\\x07"
    groups = [group(entry(label, 0.9, (1, 1)), SGD), *hostile_groups()]
    assert all(line.isprintable() for line in table(*groups, width=300).split("\n"))
    assert "sam[bold]x[/bold][link=http://evil]:boom:" in table(*groups, width=300)
    coloured = table(*groups, width=300, force_terminal=True, color_system="truecolor")
    assert "evil\x1b\\" not in coloured
    assert "\x1b]8" not in coloured


def test_the_verdict_stands_first_in_every_text_and_notes_are_merged() -> None:
    noted = [replace(each, notes=("its head is small",)) for each in (entry("pugd", 0.9231, (1, 2)), SAM)]
    shown = group(*noted, SGD)
    said = "One of pugd, sam is the best here; the data do not tell which."
    text = table(shown)
    assert text.splitlines()[2] == said
    assert words(text).count("pugd, sam: its head is small.") == text.count("head is small") == 1
    assert as_markdown([shown]).index(said) < as_markdown([shown]).index("| rank")
    assert json.loads(as_json([shown]))["groups"][0]["verdict"] == said


def test_the_usual_table_leaves_out_what_few_readers_need() -> None:
    usual, whole = (table(group(num_classes=10), width=200, full=full) for full in (False, True))
    for word in ("‖e‖", "cos", "top-5", "at 100.0k", "schedules are unfinished", "Ranks share"):
        assert word not in usual
        assert word in whole
    assert "top-5" in table(group(num_classes=100), width=200, full=False)
    in_passes = group(recipe={"train": {"budget": "passes"}})
    assert "at 100.0k" in table(in_passes, width=200, full=False)


def test_where_all_are_tied_nobody_stands_in_bold() -> None:
    tied = group(entry("pugd", 0.9231, (1, 2)), SAM)
    assert "textbf" not in as_latex([tied])
    assert "**" not in as_markdown([tied])


def test_latex_has_six_columns_unless_all_are_asked_for() -> None:
    (usual, _), *_ = tabulars(as_latex([group()]))
    assert usual == "rlrrrr"
    (whole, _), *_ = tabulars(as_latex([group()], full=True))
    assert len(whole) > 6


# --- JSON and CSV ------------------------------------------------------------------------------------------


def test_json_keeps_the_contract_and_adds_what_is_new() -> None:
    content = json.loads(as_json([group(SAM, REPORTED)]))
    assert content["schema"] == "pugdft.leaderboard/1"
    (made,) = content["groups"]
    assert (made["dataset"], made["model"], made["metric"]) == ("cifar100", "resnet18.tv_in1k", "top1")
    assert (made["equal_passes"], made["equal_seconds"]) == (100_000.0, 3720.0)
    sam, ngd = made["entries"]
    contract = {
        "optimizer": "sam", "status": "measured", "rank_low": 1, "rank_high": 2, "num_seeds": 3,
        "top1_mean": 0.92, "top1_std": 0.0015, "top1_ci95": [0.917, 0.923], "top5_mean": 0.99,
        "ece_mean": 0.0213, "gradient_passes": 2e5, "train_seconds": 7440.0, "images_per_second": 1234.5,
        "peak_memory_bytes": 13_207_024_435.0, "mean_perturbation_norm": 0.05, "mean_gradient_cosine": 0.87,
        "num_failed": 0, "failed": {}, "records": ["sam-s0", "sam-s7"], "failed_records": [],
        "spec": {"name": "sam"}, "notes": [],
    }  # fmt: skip
    new = {
        "loss_mean": 0.31234, "loss_std": 0.0015, "top5_std": 0.0015, "ece_std": 0.0015,
        "best_test_top1_picked_on_test": 0.922, "scores": {"0": 0.919, "7": 0.921},
        "top1_at_equal_passes": 0.916, "top1_at_equal_seconds": 0.915,
        "tuning": {"trials": 9, "gradient_passes": 12_345.0},
        "versus_best": {"difference": -0.0031, "p_value": 0.2134, "separated": False, "more_seeds": 7,
                        "more_seeds_range": None, "p_alone": None, "ci95": None},
        "source": None,
    }  # fmt: skip
    assert sam.items() >= {**contract, **new}.items()
    assert ngd.items() >= {
        "status": "reported", "rank_low": None, "rank_high": None, "top1_mean": 0.7604, "top1_std": 0.0008,
        "top1_ci95": None, "records": [],
        "source": {"title": "A Paper", "arxiv": "2110.00199", "year": 2022, "table": "IV",
                   "protocol": "32 px, 200 epochs", "caveat": "provenance doubtful"},
    }.items()  # fmt: skip


def test_json_stays_json_whatever_an_entry_holds() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    strange = {"lr": math.nan, "x": math.inf, "y": {1: {2, 3}}, "z": b"\xff"}
    text = as_json([group(replace(SAM, spec=strange, train_seconds=math.nan, scores={0: math.inf}))])
    json.loads(text, parse_constant=refuse)
    assert as_csv([group(replace(SAM, spec=strange, train_seconds=math.nan))]).count("nan") == 0


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_one_line_an_entry_under_jsons_names_and_nothing_is_rounded() -> None:
    groups = [group(), group(SAM, REPORTED, dataset="cifar10")]
    made = rows(as_csv(groups))
    assert [(row["dataset"], row["optimizer"]) for row in made] == [
        *(("cifar100", name) for name in ("pugd", "sam", "sgd", "vasso")),
        *(("cifar10", name) for name in ("sam", "ngd")),
    ]
    sam = made[1]
    fields = json.loads(as_json(groups))["groups"][0]["entries"][1]
    for name, value in fields.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(sam[name]) == value
    assert float(sam["top1_ci95_low"]) == fields["top1_ci95"][0]
    assert (sam["versus_best_separated"], float(sam["versus_best_difference"])) == ("false", -0.0031)
    assert sam["records"] == "sam-s0 sam-s7"
    assert json.loads(sam["scores"]) == fields["scores"]
    assert made[3]["top1_mean"] == made[3]["rank_low"] == ""


def test_a_reported_line_in_csv_has_its_own_protocol() -> None:
    sam, ngd = rows(as_csv([group(SAM, REPORTED)]))
    assert (sam["protocol"], sam["equal_passes"]) == ("224 px, 100 epochs", "100000.0")
    assert (ngd["protocol"], ngd["equal_passes"]) == ("32 px, 200 epochs", "")
    assert (ngd["status"], ngd["source_arxiv"], ngd["top1_mean"]) == ("reported", "2110.00199", "0.7604")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r="])
def test_no_text_is_a_formula_to_a_spreadsheet_and_numbers_stay_numbers(start: str) -> None:
    text = f"{start}HYPERLINK()"
    made = replace(SAM, label=text, notes=(text,), records=(text,))
    (row,) = rows(as_csv([group(made, dataset=text, model=text, protocol=text)]))
    for name in ("dataset", "model", "protocol", "optimizer", "records", "notes"):
        assert row[name].startswith("'")
        assert row[name].endswith("HYPERLINK()")
    assert row["versus_best_difference"] == "-0.0031"


# --- Markdown ----------------------------------------------------------------------------------------------


def cells(line: str) -> list[str]:
    """The cells of a row as GitHub splits it."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize(
    "groups", [[group(), group(SGD, SAM, REPORTED)], hostile_groups()], ids=["plain", "hostile"]
)
def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(groups: list[Group]) -> None:
    blocks = [block.splitlines() for block in as_markdown(groups).split("\n\n") if block.startswith("|")]
    assert blocks
    for head, alignment, *body in blocks:
        assert all(set(cell) <= set(":-") for cell in cells(alignment))
        assert {len(cells(line)) for line in (head, alignment, *body)} == {len(cells(head))}


def test_markdown_has_all_columns_and_the_tied_best_in_bold() -> None:
    text = as_markdown([group()], full=True)
    head = next(line for line in text.splitlines() if line.startswith("| rank"))
    assert cells(head) == [column.name for column in text_columns(group())]
    assert re.findall(r"\*\*(\w+)\*\*", text) == ["pugd", "sam"]
    assert "92.00 ± 0.15" in text
    assert "- undecided: sam vs pugd (best): −0.31 points" in text


def test_reported_rows_are_a_table_of_their_own_in_markdown() -> None:
    text = as_markdown([group(SGD, SAM, REPORTED)])
    above, _, below = text.partition("*reported by others, not ranked: other code, other protocol*")
    assert "ngd" not in above
    assert (
        "| ngd | 3 | 76.04 ± 0.08 | \\[1\\] table IV | 32 px, 200 epochs; caveat: provenance doubtful |"
        in below
    )


def shown_by_markdown(text: str) -> str:
    """The text that escaped Markdown shows, if nothing in it is markup; strict about what is."""
    plain = ""
    position = 0
    entities = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&#58;": ":", "&#64;": "@"}
    while position < len(text):
        character = text[position]
        if character == "\\":
            assert not text[position + 1].isalnum()
            plain += text[position + 1]
            position += 2
            continue
        if character == "&":
            entity = next(each for each in entities if text.startswith(each, position))
            plain += entities[entity]
            position += len(entity)
            continue
        assert character not in "`*_[]<>|#~$@\n", f"{character!r} is markup at {position} of {text!r}"
        plain += character
        position += 1
    return plain


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" ")))
@example("0.0")
@example("9.5 points ahead")
@example("7. a list")
@example("12) a list")
@example("3.")
def test_escaped_markdown_shows_the_text_itself(text: str) -> None:
    text = " ".join(text.split())
    escaped = escape_markdown(text)
    assert shown_by_markdown(escaped) == text
    assert "://" not in escaped
    assert not re.match(r"[-+=]|\d+[.)](\s|$)", escaped)


# --- LaTeX -------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[{}$&#%^_~]|[^\\{}$&#%^_~]+", re.DOTALL)
_COMMANDS = {
    *("begin", "end", "caption", "label", "centering", "small", "medskip", "textbf", "emph", "multicolumn"),
    *("toprule", "midrule", "bottomrule", "shortstack", "textwidth", "textbackslash", "textasciicircum"),
    *("textasciitilde", "textless", "textgreater", "textbar", "pm", "times", "uparrow", "downarrow", "ldots"),
    *("cdot", "le", "ge"),
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    *("nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta"),
    *("Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega"),
}  # fmt: skip


def check_latex(text: str) -> None:
    """A reader as strict as pdfLaTeX about everything that we write: nothing else may occur."""
    text = re.sub(r"^%.*\n?", "", text, flags=re.MULTILINE)
    depth, in_math, environments = 0, False, []
    tokens = _TOKEN.findall(text)
    assert "".join(tokens) == text
    for position, token in enumerate(tokens):
        if token.startswith("\\"):
            name = token[1:]
            assert name in _COMMANDS or name in set("{}$&#%_\\|"), f"unknown command {token}"
            if name in ("begin", "end"):
                environment = tokens[position + 2]
                assert tokens[position + 1] == "{"
                if name == "begin":
                    environments.append(environment)
                else:
                    assert environments.pop() == environment
        elif token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            assert depth >= 0
        elif token == "$":
            in_math = not in_math
        elif token == "&":
            assert environments[-1] == "tabular"
        else:
            assert token not in {"#", "%", "^", "_", "~"}, f"bare {token}"
            assert not any(character in '<>|"' for character in token)
            assert all(character.isascii() or "À" <= character <= "ÿ" for character in token), token
    assert (depth, in_math, environments) == (0, False, [])


def tabulars(text: str) -> list[tuple[str, list[str]]]:
    """The alignment and the rows of each tabular."""
    found = re.findall(r"\\begin\{tabular\}\{((?:[^{}]|\{[^{}]*\})*)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    return [
        (re.sub(r"p\{[^}]*\}", "p", alignment), re.findall(r"^(.*) \\\\$", body, re.MULTILINE))
        for alignment, body in found
    ]


@pytest.mark.parametrize(
    "groups", [[group(), group(SGD, SAM, REPORTED)], hostile_groups()], ids=["plain", "hostile"]
)
@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_latex_is_balanced_and_every_row_has_its_columns(groups: list[Group], metric: str) -> None:
    text = as_latex([replace(each, metric=metric) for each in groups])
    check_latex(text)
    made = tabulars(text)
    assert made
    for alignment, lines in made:
        for line in lines:
            spanned = re.match(r"\\multicolumn\{(\d)\}", line)
            count = int(spanned[1]) if spanned else len(re.findall(r"(?<!\\)&", line)) + 1
            assert count == len(alignment), line


def test_latex_has_the_tied_best_in_bold_signs_as_commands_and_provenance_in_comments() -> None:
    text = as_latex([group()])
    assert re.findall(r"\\textbf\{(\w+)\}", text) == ["pugd", "sam"]
    assert r"\textbf{92.00 $\pm$ 0.15}" in text
    said = "One of pugd, sam is the best here; the data do not tell which."
    assert rf"\caption{{cifar100 $\times$ resnet18.tv\_in1k: 224 px, 100 epochs. {said}}}" in text
    assert "% sam: records sam-s0 sam-s7\n" in text
    assert "% left out: " in text
    assert "±" not in re.sub(r"^%.*$", "", text, flags=re.MULTILINE)


def test_comments_cannot_be_left_by_what_they_quote() -> None:
    text = as_latex(hostile_groups())
    outside = [line for line in text.splitlines() if not line.startswith("%")]
    assert not any("cmd" in line and "textbar" not in line for line in outside)
    assert all(line.isprintable() for line in text.split("\n"))


@settings(deadline=None)
@given(st.text())
def test_escaped_latex_is_read_as_text(text: str) -> None:
    escaped = escape_latex(text)
    check_latex(escaped)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 5 % {x}", r"a\_b \& 5 \% \{x\}"),
        ("ρ, Ω, ο", r"$\rho$, $\Omega$, ?"),
        ("Müller, Čapek, 漢", "Müller, Capek, ?"),
        ("--budget", r"-{}-budget"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("x\\\\[2cm]", r"x\textbackslash{}\textbackslash{}{[}2cm{]}"),
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert escape_latex(text) == escaped


# --- all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [as_json, as_csv, as_markdown, as_latex])
def test_no_groups_are_written_too_and_every_text_ends_its_last_line(
    write: Callable[[Sequence[Group]], str],
) -> None:
    for groups in ([], [group()]):
        assert write(groups).endswith("\n")
