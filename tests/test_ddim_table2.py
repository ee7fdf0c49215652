"""Table 2 of the DDIM paper in form: equal to the formula by hand, falling, and careful with what it is given."""

import csv
import re
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import odesampler as ods
from odesampler.analysis.ddim_table2 import PAPER, ddim_table2
from odesampler.cli import main

DIGITS = ods.load("digits", dtype=torch.float64)
HELD_OUT = ods.held_out("digits")
IMAGES = HELD_OUT.images[:6]


def lost_by_hand(images, times, label):
    """Per-dimension MSE on [0, 1] of eq. 12 of the paper with sigma = 0, on the table of betas, up and down again."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    ts = list(range(0, 1000, 1000 // times))[:times]

    def step(x, t, to):
        clock = torch.full((len(x),), t, dtype=torch.float64)
        with torch.no_grad():
            eps = DIGITS.network(x, clock, label=label)
        x0 = (x - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        return alpha_bar[to].sqrt() * x0 + (1 - alpha_bar[to]).sqrt() * eps

    x = images.double()
    for t, to in [*pairwise(ts), *pairwise(ts[::-1])]:
        x = step(x, t, to)
    return (((x + 1) / 2 - (images.double() + 1) / 2) ** 2).flatten(1).mean(1)


@pytest.mark.parametrize("labelled", [False, True])
def test_the_errors_are_those_of_the_papers_formula_written_out(labelled):
    label = HELD_OUT.labels[:6] if labelled else torch.full((6,), DIGITS.null_cond["label"])
    found = ddim_table2(DIGITS, IMAGES, (2, 7, 30), cond={"label": label} if labelled else None)
    for errors, times in zip(found.errors, found.steps, strict=True):
        assert torch.allclose(errors, lost_by_hand(IMAGES, times, label), rtol=1e-8), times


def test_the_errors_fall_with_the_number_of_times():
    found = ddim_table2(ods.load("digits"), HELD_OUT.images[:16], (5, 10, 20, 50))
    assert found.means == sorted(found.means, reverse=True)
    assert found.means[0] > 20 * found.means[-1] > 0


def test_the_error_is_in_parts_of_the_data_range():
    data = IMAGES / 4
    exact = ods.exact.Empirical(data, 0.1)
    quarter, whole = (ddim_table2(exact.model(data_range=r), data, (6,)).means[0] for r in [(-0.25, 0.25), (-1, 1)])
    assert quarter == pytest.approx(16 * whole, rel=1e-12)
    assert whole > 0


def test_images_a_little_outside_are_said_once_for_all_of_the_table():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ddim_table2(DIGITS, 1.3 * IMAGES, (2, 3))
    assert ["6 of 6 images leave" in str(w.message) for w in told] == [True]
    assert told[0].filename == __file__


def test_the_report_says_what_was_chosen_and_shows_the_papers_numbers_beside(tmp_path):
    found = ddim_table2(DIGITS, IMAGES, (3, 10))
    for words in ("model digits, 6 images, no label", "state in float64", "'leading'", "sigma = 0.01", "'source'"):
        assert words in found.table()
    assert [row[3] for row in found.rows()] == ["-", "0.014"]
    assert [row[1] for row in found.rows()] == ["4", "18"]
    assert [float(row[2]) for row in found.rows()] == pytest.approx(found.means, rel=5e-3)
    assert found._repr_html_().count("<tr>") == 3
    found.to_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        assert [(int(r["S"]), float(r["error"])) for r in csv.DictReader(file)] == [
            *zip((3, 10), found.means, strict=True)
        ]
    assert "conditions label" in ddim_table2(DIGITS, IMAGES, (2,), cond={"label": 3}).table()


def test_the_papers_own_numbers_fall():
    assert list(PAPER) == [10, 20, 50, 100, 200, 500, 1000]
    assert list(PAPER.values()) == sorted(PAPER.values(), reverse=True)


@pytest.mark.parametrize(
    ("changes", "images", "steps", "message"),
    [
        ({}, IMAGES, (5, 1), "whole and 2 or more"),
        ({}, IMAGES, (5, 2.5), "whole and 2 or more"),
        ({}, IMAGES, (), "whole and 2 or more"),
        ({}, IMAGES, (5, 1001), "1001 are too many"),
        ({"data_range": None}, IMAGES, (5,), "Model\\(data_range=\\)"),
        ({"schedule": ods.VE()}, IMAGES, (5,), "VE has none"),
        ({}, 127.5 * (IMAGES + 1), (5,), "far outside"),
        ({}, IMAGES[0], (5,), "must have shape"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_is_called(changes, images, steps, message):
    def never(x_t, t, label):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match=message):
        ddim_table2(replace(DIGITS, network=never, **changes), images, steps)


def test_the_command_lists_what_it_knows_and_checks_its_options_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ods.Model, "__call__", None)
    for words, message in [
        (["reproduce", "ddim-table3"], "nothing called 'ddim-table3' can be reproduced; known: ddim-table2"),
        (["reproduce", "ddim-table2", "--out", "t.png"], "must end in .csv"),
        (["reproduce", "ddim-table2", "--num", "361"], "digits has 360 held-out images"),
        (["reproduce", "ddim-table2", "--num", "0"], "--num must be 1 or more"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_makes_the_whole_table_and_it_falls_from_10_to_1000(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "ddim-table2", "--num", "8", "--out", "t.csv"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    with open("t.csv", newline="") as file:
        made = [(int(row["S"]), float(row["error"])) for row in csv.DictReader(file)]
    assert [s for s, _ in made] == list(PAPER)
    assert [e for _, e in made] == sorted((e for _, e in made), reverse=True)
    assert made[0][1] > 100 * made[3][1] > 1000 * made[-1][1] > 0
    printed = [re.split(r"\s+", line)[:3] for line in out.splitlines() if re.match(r"\d+ +\d+ +\d", line)]
    assert [(int(s), float(e)) for s, _, e in printed] == [(s, float(f"{e:.2e}")) for s, e in made]
