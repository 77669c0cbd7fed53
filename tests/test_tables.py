"""What a run shows of its data and its results, as it stands on the screen."""

from rich.console import Console
from rich.table import Table

from thaw.data.quality import Leak, Quality, summary
from thaw.tables import data_table, findings, per_class_table, results_table


def printed(quality: Quality) -> str:
    console = Console(width=100, highlight=False)
    with console.capture() as captured:
        console.print(data_table(quality))
        for line in findings(quality):
            console.print(line, soft_wrap=True)
    return captured.get()


def test_clean_data_is_a_table_and_nothing_else() -> None:
    quality = Quality({"train": 1200, "test": 30}, {"train": {"a": 700, "b": 500}, "test": {"a": 15, "b": 15}})
    lines = printed(quality).splitlines()
    assert [line.split() for line in lines] == [
        ["data", "samples", "classes"],
        ["train", "1,200", "2", "(500", "–", "700", "each)"],
        ["test", "30", "2", "(15", "–", "15", "each)"],
    ]
    assert findings(quality) == []


def test_every_finding_is_one_line() -> None:
    leak = Leak("train", "test", 2, [(5, 1), (7, 3)], ["[red]so[/red]\nlong\x1b[31m " + "x" * 90])
    quality = Quality(
        sizes={"train": 10, "test": 4},
        class_counts={"train": {"a[b]": 8, **{f"c{n}": 0 for n in range(9)}}, "test": {"a[b]": 3, "new": 1}},
        lengths={"train": summary([1.5, 2, 3]), "test": summary([])},
        unit="seconds",
        duplicates={"train": 3, "test": 0},
        leaks=[leak, Leak("train", "val", 1, [(0, 9)])],
        skipped={"empty": 2, "unreadable": 0},
        truncated={"train": 1, "test": 0},
    )
    lines = printed(quality).splitlines()
    assert " ".join(lines[0].split()) == "data samples classes seconds, min – median – 95 % – max"
    assert lines[1].endswith("1.5 – 2 – 2.9 – 3")
    assert lines[3:6] == [
        f"2 of test also in train: “[red]so[/red] long [31m {'x' * 35}…”",
        "1 of val also in train: val 9 = train 0",
        "duplicates: 3 in train",
    ]
    assert lines[6:8] == ["skipped: 2 empty", "truncated: 1 of train"]
    assert lines[8] == "under 10 training samples: c0 0, c1 0, c2 0, c3 0, c4 0 and 5 more"
    assert lines[9] == "no sample in train: new"
    assert len(lines) == 10


def test_numbers_take_the_place_of_classes() -> None:
    quality = Quality({"train": 3}, numbers={"train": summary([0.5, 1, 4])})
    assert "targets, min – median – max" in printed(quality)
    assert "0.5 – 1 – 4" in printed(quality)


def cells(table: Table) -> list[list[str]]:
    """What stands in each row."""
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_results_have_a_column_for_each_measured_split_and_a_dash_for_what_was_not() -> None:
    table = results_table({"val/loss": 0.25, "test/loss": 0.5, "test/auroc": 1.0}, best_epoch=4)
    assert table.title == "Results at the best epoch (5)"
    assert [column.header for column in table.columns] == ["metric", "val", "test"]
    assert cells(table) == [["loss", "0.2500", "0.5000"], ["auroc", "–", "1.0000"]]


def test_a_class_is_shown_by_its_name_whatever_stands_in_it() -> None:
    table = per_class_table(["a", "[b]"], {"f1": [0.5, 1.0], "support": [3, 12]}, "test")
    assert cells(table) == [["a", "0.5000", "3"], [r"\[b]", "1.0000", "12"]]
