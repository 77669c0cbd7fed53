"""What the README says of speed, one topic a file; `scripts/benchmark.py` runs them."""
