"""Linear probes over a grid: all heads in one pass, against a run for each."""

import itertools

from benchmarks.measure import DATA, FOLDER, ROOT, WEIGHTS, command
from thaw.search.ledger import read_rows

GRID = {
    "optimizer.lr": ["1e-4", "1e-3", "1e-2"],
    "optimizer.weight_decay": ["1e-3", "1e-2", "1e-1"],
    "model.dropout": ["0.0", "0.2", "0.5"],
}


def probes() -> None:
    """Seconds of whole commands, and of training and measuring alone, as the runs themselves have recorded them.

    All read features from one cache, which is empty at first; half of the single commands run before the others.
    """
    plain = ["experiment=hymenoptera", f"paths.data={DATA}", f"model.weights={WEIGHTS}/mobilenetv2_100.safetensors"]
    plain += ["data.augment=none", "freezing=linear_probe", "logger=none", f"cache.dir={FOLDER}/cache"]
    points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    jobs = [[f"{key}={value}" for key, value in point.items()] for point in points]
    swept = [f"{key}={','.join(values)}" for key, values in GRID.items()]

    def one_by_one(numbers: range) -> list[float]:
        return [command("train.py", *plain, *jobs[n], "test=false", f"run.dir={FOLDER}/alone/{n}") for n in numbers]

    alone = one_by_one(range(0, len(jobs), 2))
    pass_of_all = command("train.py", "-m", "search=probe", *plain, *swept, f"search.dir={FOLDER}/probe")
    grid = command("train.py", "-m", *plain, *swept, f"search.dir={FOLDER}/grid")
    alone += one_by_one(range(1, len(jobs), 2))
    commands = {"`python train.py` 27 times": sum(alone), "one sweep, `-m`": grid, "`-m search=probe`": pass_of_all}
    folders = dict(zip(commands, ("alone", "grid", "probe"), strict=True))
    rows = {name: read_rows([ROOT / FOLDER / folder]) for name, folder in folders.items()}
    trained = {name: sum(row.seconds for row in held) for name, held in rows.items()}
    best = {name: max(row.objective for row in held) for name, held in rows.items()}
    first = next(iter(commands))
    print("| 27 linear probes, hymenoptera, 10 epochs | seconds | times as fast | training alone | times | best val |")
    print("|---|---|---|---|---|---|")
    for name, seconds in commands.items():
        faster, also = commands[first] / seconds, trained[first] / trained[name]
        print(f"| {name} | {seconds:.1f} | {faster:.1f} | {trained[name]:.1f} | {also:.1f} | {best[name]:.4f} |")
