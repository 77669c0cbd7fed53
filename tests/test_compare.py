"""Runs compared: folded by configuration, paired over seeds, and written down."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from thaw.errors import UserError
from thaw.search import report
from thaw.search.compare import difference, folded, interval, ranked, verdict
from thaw.search.ledger import Row, read_rows, write_csv


def run(folder: Path, value: float, seed: int, *overrides: str, **fields: object) -> Path:
    """A run's record as `train.py` leaves it."""
    place = folder / f"{'-'.join(overrides)}-{seed}".replace("=", "_")
    place.mkdir(parents=True)
    record = {"status": "finished", "monitor": "val/accuracy", "mode": "max", "seed": seed, "seconds": 2.0}
    record |= {"overrides": [*overrides, f"seed={seed}"], "metrics": {"val/accuracy": value, "val/loss": 1 - value}}
    (place / "run.json").write_text(json.dumps(record | {"history": [value / 2, value], "epochs": 2} | fields))
    return place


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    for seed, (a, b) in enumerate([(0.90, 0.80), (0.95, 0.86), (0.93, 0.82)]):
        run(tmp_path, a, seed, "model=resnet", "freezing=none")
        run(tmp_path, b, seed, "model=resnet", "freezing=gradual")
    return read_rows([tmp_path])


def test_runs_that_differ_in_the_seed_alone_are_one_configuration(rows: list[Row]) -> None:
    by_name = {c.name: c for c in folded(rows)}
    assert by_name.keys() == {"freezing=none", "freezing=gradual"}  # and not what all share
    assert sorted(by_name["freezing=none"].rows) == ["0", "1", "2"]
    assert ranked(folded(rows), "val/accuracy", "max")[0].name == "freezing=none"
    assert ranked(folded(rows), "val/loss", "min")[0].name == "freezing=none"


def test_the_difference_is_paired_by_seed(rows: list[Row]) -> None:
    one, other = ranked(folded(rows), "val/accuracy", "max")
    found = difference(one, other, "val/accuracy")
    apart = np.array([0.10, 0.09, 0.11])
    assert found.mean == pytest.approx(0.10)
    assert found.interval == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-4)
    assert found.p == pytest.approx(stats.ttest_rel(one.values("val/accuracy"), other.values("val/accuracy")).pvalue)
    assert interval(apart) == pytest.approx(found.interval)
    assert verdict(one, other, "val/accuracy", "max").startswith("freezing=none beats freezing=gradual by 0.1 ± 0.02")
    assert verdict(one, other, "val/loss", "min").startswith("freezing=none beats freezing=gradual by 0.1")
    assert verdict(other, one, "val/accuracy", "max").startswith("freezing=none beats")


def test_a_summary_calls_configurations_by_their_rows(rows: list[Row]) -> None:
    said = report.summary(rows)
    assert said[2].startswith("| 1 | none |")
    assert any(line.startswith("- 1 beats 2 by 0.1 ± 0.02") for line in said)


def test_the_best_is_held_against_the_configuration_as_it_was(tmp_path: Path) -> None:
    for seed in range(3):
        for rate in range(1, 7):
            run(tmp_path, 0.9 - rate / 100 + (seed - 1) * (rate - 3) / 20, seed, f"lr={rate}")
    said = report.summary(read_rows([tmp_path]), {"lr": "6"})
    assert "- 6 is the configuration as it was: val/accuracy 0.8400 ± 0.3726." in said
    assert any(line.startswith("- 1 and 6 are within seed noise") for line in said)
    assert "- It is the configuration as it was before the sweep." in report.summary(read_rows([tmp_path]), {"lr": "1"})
    assert not [line for line in report.summary(read_rows([tmp_path]), {"lr": "7"}) if "as it was" in line]


def test_what_the_seeds_move_as_much_is_called_noise(tmp_path: Path) -> None:
    for seed, (a, b) in enumerate([(0.90, 0.80), (0.80, 0.90), (0.85, 0.84)]):
        run(tmp_path, a, seed, "lr=1")
        run(tmp_path, b, seed, "lr=2")
    one, other = folded(read_rows([tmp_path]))
    assert "within seed noise" in verdict(one, other, "val/accuracy", "max")


def test_of_one_seed_nothing_is_said(tmp_path: Path) -> None:
    run(tmp_path, 0.9, 0, "lr=1")
    run(tmp_path, 0.8, 0, "lr=2")
    rows = read_rows([tmp_path])
    assert difference(*folded(rows), "val/accuracy") is None
    assert any("is not known" in line for line in report.summary(rows))


def test_equal_figures_are_no_difference_and_equal_distances_a_sure_one(tmp_path: Path) -> None:
    for seed in range(3):
        run(tmp_path, 0.5, seed, "lr=1")
        run(tmp_path, 0.5, seed, "lr=2")
        run(tmp_path, 0.75, seed, "lr=3")
    one, two, three = folded(read_rows([tmp_path]))
    assert difference(one, two, "val/accuracy").noise
    assert not difference(one, three, "val/accuracy").noise


def test_a_row_has_what_repeats_it_and_its_share_of_the_cost(tmp_path: Path) -> None:
    run(tmp_path, 0.9, 0, "lr=1", seconds=3.0)
    run(tmp_path, 0.1, 0, "lr=2", seconds=1.0, status="failed", reason="NonFiniteError: step 3", metrics={})
    write_csv(tmp_path / "results.csv", read_rows([tmp_path]))
    first, second = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert first["command"] == "python train.py lr=1 seed=0"
    assert (first["share"], second["share"]) == ("0.75", "0.25")
    assert (first["val/loss"], second["val/loss"]) == (str(1 - 0.9), "")
    assert (second["status"], second["reason"]) == ("failed", "NonFiniteError: step 3")


def test_the_page_holds_its_pictures_and_runs_nothing_that_a_name_holds(tmp_path: Path) -> None:
    run(tmp_path, 0.9, 0, "lr=<script>alert(1)</script>")
    run(tmp_path, 0.8, 1, "lr=2")
    report.write(tmp_path, read_rows([tmp_path]))
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert '<svg role="img" aria-label="' in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_place_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run\.json is there"):
        read_rows([tmp_path])
