"""Compare runs: `python scripts/compare.py runs/sweeps/mine runs/other …` prints the table, paired over seeds.

Each place is a run or a folder of runs. Runs that differ in the seed alone are one configuration. With `--out folder`
it also writes results.csv, results.md and report.html there.
"""

import argparse
from pathlib import Path

from thaw import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of runs, or folders of them")
    parser.add_argument("--out", type=Path, help="folder for results.csv, results.md and report.html")
    options = parser.parse_args()
    from thaw.search import report
    from thaw.search.ledger import read_rows

    rows = read_rows(options.runs)
    print("\n".join(report.summary(rows)))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        report.write(options.out, rows, title="Runs compared")
        print(f"Ledger: {options.out}/results.csv, results.md, report.html")


if __name__ == "__main__":
    command.main(main)
