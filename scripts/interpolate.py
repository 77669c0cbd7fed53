"""Interpolate a run's body between its pretrained and its fine-tuned weights, and choose on validation (WiSE-FT).

`python scripts/interpolate.py RUN [--steps 11]` (arXiv:2109.01903) writes RUN/checkpoints/interpolated.ckpt and
RUN/interpolation.png. A new head has no pretrained value: it is the tuned one throughout.
"""

import argparse
from pathlib import Path

from rich.table import Table

from thaw import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("--steps", type=int, default=11, help="values of alpha from 0 to 1 (default: 11)")
    arguments = parser.parse_args()

    # torch comes with these, and must not slow down --help.
    from thaw.console import console, quiet_lightning, say
    from thaw.interpolation import draw, wise_ft
    from thaw.run.restore import restore

    quiet_lightning()
    run = restore(arguments.run)
    curve = wise_ft(run, arguments.steps)
    test = f"test/{curve.metric.partition('/')[2]}"
    table = Table("alpha", curve.metric, test, "", title="From the pretrained to the tuned body", title_justify="left")
    for alpha, value in curve.values.items():
        measured = f"{curve.test[alpha][test]:.4f}" if alpha in curve.test else "–"
        table.add_row(f"{alpha:.2f}", f"{value:.4f}", measured, "chosen" if alpha == curve.chosen else "")
    console.print(table)
    if run.network.new_head:
        say("The head is the tuned one at every alpha: it has no pretrained value.")
    draw(curve, run.folder / "interpolation.png")
    say(f"Written: {run.folder}/checkpoints/interpolated.ckpt, {run.folder}/interpolation.png")


if __name__ == "__main__":
    command.main(main)
