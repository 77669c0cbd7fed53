"""Tables of 10^4 to 10^6 rows: memory, seconds to begin, and the cost of a sample; each in a process of its own."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import FOLDER, ROOT, interleaved

SIZES, ROUNDS, FEW, MANY = (10_000, 100_000, 1_000_000), 3, 10_000, 100_000
WORDS = [f"word{number}" for number in range(2000)]


def large() -> None:
    """Streamed, and as a table on disk. The first start indexes, and up to 100,000 samples follow."""
    folder = ROOT / FOLDER
    for size in SIZES:
        _write(folder / str(size), size)
    for way in ("streamed", "table"):
        first = {size: _measured(folder / str(size), way, min(size, MANY)) for size in SIZES}
        once = {str(size): lambda size=size, way=way: _measured(folder / str(size), way, FEW) for size in SIZES}
        again = interleaved(once, ROUNDS)
        print(f"\n| {way} | first start, s | start, s | µs a sample | of up to 100,000 | MB | after up to 100,000 |")
        print("|---" * 7 + "|")
        for size in SIZES:
            start, each, memory = (
                statistics.median(found[key] for found in again[str(size)]) for key in ("start", "each", "memory")
            )
            whole = first[size]
            print(
                f"| {size:,} rows | {whole['start']:.1f} | {start:.1f} | {each:.0f} | {whole['each']:.0f} "
                f"| {memory:.0f} | {whole['memory']:.0f} |",
                flush=True,
            )


def _write(folder: Path, size: int) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, rows in (("train", size), ("val", 1000)):
        schema = pa.schema([("text", pa.string()), ("label", pa.string())])
        with pq.ParquetWriter(folder / f"{split}.parquet", schema) as file:
            for start in range(0, rows, 10_000):
                count = min(10_000, rows - start)
                drawn = generator.integers(0, len(WORDS), (count, 16))
                lengths = generator.integers(3, 17, count)
                texts = [" ".join(WORDS[w] for w in row[:n]) for row, n in zip(drawn, lengths, strict=True)]
                labels = [f"class{number}" for number in generator.integers(0, 4, count)]
                file.write_table(pa.table({"text": texts, "label": labels}, schema))


def _measured(folder: Path, way: str, samples: int) -> dict[str, float]:
    code = f"from benchmarks.large import measure; measure({str(folder)!r}, {way!r}, {samples})"
    own = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT / "scripts", env=own, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: str, way: str, samples: int) -> None:
    """Print what so many samples cost: seconds to begin, microseconds each, and memory in MB beside the imports."""
    from thaw.data.text import Text
    from thaw.model.tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    before, began = _peak(), time.perf_counter()
    size = pq.read_metadata(f"{folder}/train.parquet").num_rows
    options = {"streaming": True, "train_size": size} if way == "streamed" else {}
    data = Text(folder, batch_size=32, num_workers=0, **options)
    data.preprocess(kind="text", tokenizer=tokenizer, max_length=64)
    data.quality()
    assert data.fingerprint
    batches = iter(data._train_loader())
    started = time.perf_counter()
    seen = 0
    while seen < samples:
        seen += len(next(batches)[1])
    each = (time.perf_counter() - started) / seen
    print(json.dumps({"start": started - began, "each": 1e6 * each, "memory": _peak() - before}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
