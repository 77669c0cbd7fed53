"""The fault matrix: every case by its number, and the table of what became of it (`make faults`)."""

from collections import defaultdict

import pytest

CLASSES = {
    "A": "exact resume",
    "B": "checkpoint files",
    "C": "signals",
    "D": "numbers and memory",
    "E": "data",
    "F": "loggers",
    "G": "sweeps",
    "H": "directories and configuration",
    "I": "several processes",
    "J": "export and prediction",
    "S": "security",
}
SIZES = {"A": 15, "B": 16, "C": 8, "D": 7, "E": 16, "F": 6, "G": 12, "H": 11, "I": 6, "J": 5, "S": 24}
CASES = [f"{letter}{number + 1}" for letter, size in SIZES.items() for number in range(size)]
# Cases seen to fail on Lightning 2.6.6, Hydra 1.3.8 and wandb 0.31 as they are.
STOCK = {
    "A": (1, 2, 7, 8, 10, 14), "B": (1, 2, 3, 4, 5, 6, 8, 11, 12, 13, 14, 15), "C": (1, 3), "D": (1, 4),
    "E": (1, 7, 8), "F": (1, 2), "G": (2, 3, 4, 5, 6, 7, 11), "H": (1, 3, 4),
}  # fmt: skip
FAIL_ON_STOCK = {f"{letter}{number}" for letter, numbers in STOCK.items() for number in numbers}
# What no test can inject, and why: filled from the tests that are skipped.
NOT_YET: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*cases): injects these cases of the fault matrix; run with make faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("fault"):
            if unknown := set(mark.args) - set(CASES):
                raise pytest.UsageError(f"{item.nodeid}: no such fault cases: {sorted(unknown)}")
            item.user_properties += [("fault", case) for case in mark.args]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr.startswith("fault"):
        outcomes = _outcomes(terminalreporter.stats)
        terminalreporter.section("fault matrix")
        for line in table(outcomes):
            terminalreporter.write_line(line)


def _outcomes(stats: dict[str, list]) -> dict[str, set[str]]:
    """Case → how its tests ended."""
    found: dict[str, set[str]] = defaultdict(set)
    for kind in ("passed", "failed", "error", "skipped"):
        for report in stats.get(kind, []):
            for name, case in getattr(report, "user_properties", []):
                if name == "fault" and (kind != "passed" or report.when == "call"):
                    found[case].add(kind)
                    if kind == "skipped":
                        NOT_YET.setdefault(case, str(report.longrepr[2]).removeprefix("Skipped: "))
    return found


def table(outcomes: dict[str, set[str]]) -> list[str]:
    """Rows of the README's table: for each class its cases, those that pass, and those not run with the reason."""
    rows = ["| class | cases | pass | fail | not run |", "|---|---|---|---|---|"]
    totals = [0, 0, 0]
    for letter, name in CLASSES.items():
        cases = [case for case in CASES if case[0] == letter]
        failed = [case for case in cases if outcomes.get(case, set()) & {"failed", "error"}]
        passed = [case for case in cases if case not in failed and "passed" in outcomes.get(case, set())]
        reasons: dict[str, list[str]] = defaultdict(list)
        for case in cases:
            if case not in failed and case not in passed:
                reasons[NOT_YET.get(case, "no test")].append(case)
        rest = "; ".join(f"{_span(left)}: {reason}" for reason, left in reasons.items()) or "–"
        rows.append(f"| {letter} {name} | {len(cases)} | {len(passed)} | {' '.join(failed) or '0'} | {rest} |")
        totals = [total + len(more) for total, more in zip(totals, (cases, passed, failed), strict=True)]
    rows.append(f"| all | {totals[0]} | {totals[1]} | {totals[2]} | {totals[0] - totals[1] - totals[2]} |")
    stock = sum("passed" in outcomes.get(case, set()) for case in FAIL_ON_STOCK)
    rows.append(f"Of the {len(FAIL_ON_STOCK)} cases seen to fail on the stock stack, {stock} pass here.")
    return rows


def _span(cases: list[str]) -> str:
    return f"{cases[0]}–{cases[-1]}" if len(cases) > 2 and _adjacent(cases) else ", ".join(cases)


def _adjacent(cases: list[str]) -> bool:
    numbers = [int(case[1:]) for case in cases]
    return numbers == list(range(numbers[0], numbers[-1] + 1))
