"""Measure a finished run again: on its own test split the same figures to the last digit, or on other samples.

`python scripts/evaluate.py RUN [--checkpoint last] [--out FOLDER] [data.root=… paths.data=… data=image_folder …]`
needs neither the pretrained weights nor the network. Other samples are those of their test split, or all of them where
there is none; their classes are found by name. Writes only with --out.
"""

import argparse
from pathlib import Path

from rich.table import Table

from thaw import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("overrides", nargs="*", metavar="data.setting=value", help="other data, in Hydra's syntax")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="(default: best)")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json, predictions.csv and per_class.csv")
    arguments = parser.parse_intermixed_args()

    # torch comes with these, and must not slow down --help.
    from thaw.console import console, quiet_lightning, say
    from thaw.serve.evaluation import evaluate

    quiet_lightning()
    found = evaluate(arguments.run, arguments.overrides, arguments.checkpoint, arguments.out)
    title = f"{found.checkpoint}.ckpt on {found.samples:,} samples of {found.split}"
    table = Table("metric", "now", *["in run.json"] * bool(found.before), title=title, title_justify="left")
    for name, value in found.measured.items():
        table.add_row(name, f"{value:.4f}", *[f"{found.before[name]:.4f}"] if name in found.before else [])
    console.print(table)
    if found.before:
        say(
            "Equal to the last digit." if found.before == found.measured else "[yellow]Other figures than the run's.[/]"
        )
    if found.everything:
        say(
            "[yellow]These data have no test split: all samples were measured, also those a run may have trained on.[/]"
        )
    if arguments.out:
        names = ("evaluation.json", "predictions.csv", "per_class.csv")
        say(f"Written: {', '.join(str(path) for name in names if (path := arguments.out / name).is_file())}")


if __name__ == "__main__":
    command.main(main)
