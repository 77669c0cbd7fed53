"""Average the weights of several runs, as long as validation does not get worse: the greedy soup.

`python scripts/soup.py RUN [RUN …] [--out FOLDER]` (arXiv:2203.05482): runs or folders of runs, each with its best
checkpoint; of a single run its best and its last. Writes soup.ckpt and soup.json.
"""

import argparse
import itertools
from pathlib import Path

from rich.table import Table

from thaw import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="directories of finished runs, or of a sweep of them")
    parser.add_argument("--out", type=Path, help="where to write (default: runs/soup-<n>)")
    arguments = parser.parse_args()

    # torch comes with these, and must not slow down --help.
    from thaw.console import console, quiet_lightning, say
    from thaw.soup import greedy_soup, runs_in

    quiet_lightning()
    numbered = (Path("runs") / f"soup-{number}" for number in itertools.count(1))
    out = arguments.out or next(folder for folder in numbered if not folder.exists())
    runs, left_out = runs_in(arguments.runs)
    for run in left_out:
        say(f"[yellow]Left out, for it has not finished: {run}[/]")
    soup = greedy_soup(runs, out)
    table = Table("checkpoint", f"{soup.metric} alone", "with the soup", "", title="Soup", title_justify="left")
    for ingredient in soup.order:
        values = (f"{ingredient.alone:.4f}", f"{ingredient.together:.4f}")
        table.add_row(f"{ingredient.run} {ingredient.role}", *values, "kept" if ingredient.kept else "left")
    console.print(table)
    test = f"test/{soup.metric.partition('/')[2]}"
    for name, metrics in soup.test.items():
        say(f"{test} of the {name}: {metrics[test]:.4f}")
    say(f"Written: {out}/soup.ckpt, {out}/soup.json")


if __name__ == "__main__":
    command.main(main)
