"""Predict with a finished run, from its directory alone: no training data, no pretrained weights, no network.

`python scripts/predict.py RUN INPUT --out preds.csv|parquet|jsonl [--top K]`: INPUT is a file, a folder, a table of
texts or of paths, or - for lines of standard input. A sample that cannot be read is a row with its error; then
the exit code is 3. The file has its name only once it is whole.
"""

import argparse
import sys
from pathlib import Path

from thaw import command

SOME_BAD = 3  # exit code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("input", help="file, folder, table, or - for standard input")
    parser.add_argument("--out", type=Path, required=True, help="where to write; .csv, .parquet or .jsonl")
    parser.add_argument("--top", type=int, help="tell the K likeliest classes only (default: the share of each)")
    parser.add_argument("--column", help="of a table (default: as in training)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="(default: best)")
    arguments = parser.parse_args()

    # torch comes with these, and must not slow down --help.
    from rich.console import Console
    from rich.progress import track

    from thaw.console import quiet_lightning, say
    from thaw.serve.fitted import fitted
    from thaw.serve.predict import Predictor
    from thaw.serve.sink import assert_format, table
    from thaw.serve.sources import samples

    quiet_lightning()
    assert_format(arguments.out)
    predictor = Predictor(fitted(arguments.run, arguments.checkpoint), arguments.top)
    found, total = samples(arguments.input, predictor.inputs, arguments.column)
    good = bad = 0
    with table(arguments.out, predictor.columns) as write:
        shown = track(found, "Predicting", total=total, console=Console(stderr=True), transient=True)
        for rows in predictor.rows(shown):
            write(rows)
            failed = sum("error" in row for row in rows)
            good, bad = good + len(rows) - failed, bad + failed
    told = f", [yellow]{bad:,} sample{'s' * (bad != 1)} with an error[/]" * bool(bad)
    say(f"Written: {arguments.out}, {good:,} prediction{'s' * (good != 1)}{told}")
    sys.exit(SOME_BAD if bad else 0)


if __name__ == "__main__":
    command.main(main)
