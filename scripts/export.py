"""Export a finished run: adapters merged, class names and preprocessing inside, checked against the checkpoint.

`python scripts/export.py RUN --format safetensors|onnx|hf|torch_export [--out FOLDER]` writes RUN/export/<format>,
loads it again and compares the outputs, on samples of the run where its data are there, else on random ones: a
difference of more than 1e-5 of the largest output (or of 1) is an error, and nothing is left. `hf` is for
`AutoModelFor…` and for `timm.create_model("local-dir:…")`.
"""

import argparse
from pathlib import Path

from thaw import command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("--format", required=True, choices=("safetensors", "onnx", "hf", "torch_export"))
    parser.add_argument("--out", type=Path, help="where to write (default: RUN/export/<format>)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="(default: best)")
    arguments = parser.parse_args()

    # torch comes with these, and must not slow down --help.
    from thaw.console import quiet_lightning, say
    from thaw.serve.export import export

    quiet_lightning()
    say(f"Exporting {arguments.run} {arguments.checkpoint}.ckpt as {arguments.format} …")
    found = export(arguments.run, arguments.format, arguments.out, arguments.checkpoint)
    kind = "samples of the run" if found.real else "random samples, for the run's data are not there"
    say(f"Loaded again and compared on {found.samples} {kind}: max difference {found.difference:.1e}")
    for path in sorted(found.folder.iterdir()):
        say(f"Written: {path} ({path.stat().st_size / 1e6:,.1f} MB)")


if __name__ == "__main__":
    command.main(main)
