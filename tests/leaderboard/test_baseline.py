"""``leaderboard --baseline``: every other optimizer against one that was named before."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ranked_records import compare, entry_of, one_group, seeds
from run_records import PUGD, SAM, SGD, board, table

from pugdft.errors import UserError
from pugdft.leaderboard import as_json, as_latex, as_markdown
from pugdft.leaderboard.formats.html import as_html
from pugdft.leaderboard.formats.text import escape_latex, escape_markdown
from pugdft.leaderboard.stats import holm_adjusted
from pugdft.leaderboard.verdicts import forest, verdict
from pugdft.records import RunRecord

SGDS, SAMS = (0.90, 0.905, 0.91), (0.921, 0.927, 0.931)


def many(num_poor: int) -> list[RunRecord]:
    rng = np.random.default_rng(0)
    poor = [seeds({**PUGD, "rho": 1.0 + n}, *(0.85 + rng.normal(0, 0.01, 3))) for n in range(num_poor)]
    return [each for runs in (seeds(SGD, *SGDS), seeds(SAM, *SAMS), *poor) for each in runs]


def test_holm_counts_the_comparisons_with_the_baseline_alone() -> None:
    group = one_group(many(3), baseline="sgd")
    assert (group.baseline, group.num_pairs) == ("sgd", 4)
    others = [each for each in group.entries if each.label != "sgd"]
    found = [each.versus_baseline for each in others]
    assert all(found)
    alone = [compare(each.scores, entry_of(group, "sgd").scores, 1000) for each in others]
    assert [each.p_alone for each in found if each] == pytest.approx([each.p_value for each in alone])
    expected = holm_adjusted(np.array([each.p_value for each in alone]))
    assert [each.p_value for each in found if each] == pytest.approx(expected.tolist())
    assert [each.difference for each in found if each] == pytest.approx([each.difference for each in alone])
    assert entry_of(group, "sgd").versus_baseline is None
    assert all(each.versus_best is None for each in group.entries)


def test_poor_variants_cost_the_leading_pair_less_than_among_all_pairs() -> None:
    p_values = []
    for options in ({}, {"baseline": "sgd"}):
        sam = entry_of(one_group(many(6), **options), "sam")
        sgd = entry_of(one_group(many(6), **options), "sgd")
        versus = sam.versus_baseline or sgd.versus_best
        assert versus is not None
        assert versus.p_value is not None
        p_values.append(versus.p_value)
    assert p_values[1] < p_values[0]


def test_two_that_were_not_compared_share_their_ranks() -> None:
    group = one_group(seeds(SGD, *SGDS), seeds(SAM, 0.99, 0.991, 0.992), seeds(PUGD, 0.96, 0.961, 0.962),
                      baseline="sgd")  # fmt: skip
    ranks = {each.label: (each.rank_low, each.rank_high) for each in group.entries}
    assert ranks == {"sam": (1, 2), "pugd": (1, 2), "sgd": (3, 3)}
    assert verdict(group) == "Against sgd, better: sam, pugd."


def test_every_format_says_it_first_and_draws_the_intervals() -> None:
    group = one_group(many(2), baseline="sgd")
    sentence = verdict(group)
    rows = forest(group)
    assert rows[0] == "top-1 minus that of sgd, %; 95 % intervals of each pair, * told apart"
    assert [row.split()[0] for row in rows[1:]] == ["sam", "pugd[rho=1.0]", "pugd[rho=2.0]"]
    text = table([group])
    assert text.index(sentence) < text.index("rank") < text.index(rows[1].rstrip())
    assert escape_markdown(sentence) in as_markdown([group])
    assert escape_latex(sentence) in as_latex([group])
    page = as_html([group])
    assert page.index(sentence) < page.index("minus that of sgd") < page.index("<table")
    content = json.loads(as_json([group]))["groups"][0]
    assert (content["verdict"], content["baseline"], content["num_pairs"]) == (sentence, "sgd", 3)


def test_the_marks_of_a_forest_stand_where_the_numbers_are() -> None:
    group = one_group(seeds(SGD, *SGDS), seeds(SAM, *SAMS), baseline="sgd")
    (row,) = forest(group)[1:]
    axis = row[len("sam * ") :][:41]
    versus = entry_of(group, "sam").versus_baseline
    assert versus is not None
    assert versus.ci95 is not None
    reach = max(map(abs, versus.ci95))
    assert axis.index("●") == 20 + round(20 * versus.difference / reach)
    assert len(axis.rstrip()) == 41
    assert f"{100 * versus.difference:.2f}" in row


def test_a_baseline_that_nobody_has_lists_who_there_is() -> None:
    with pytest.raises(UserError, match=r'no record of optimizer "adam". Known: sam, sgd'):
        board(*seeds(SGD, *SGDS), *seeds(SAM, *SAMS), baseline="adam")


def test_a_group_without_the_baseline_is_ranked_as_ever() -> None:
    groups = board(
        *seeds(SGD, *SGDS), *seeds(SAM, *SAMS), *seeds(SAM, *SAMS, train__epochs=3),
        *seeds(PUGD, *SGDS, train__epochs=3), baseline="sgd",
    )  # fmt: skip
    assert sorted(str(group.baseline) for group in groups) == ["None", "sgd"]
