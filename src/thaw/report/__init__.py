"""One self-contained page for every run: what was done, what came of it, and what the network goes by."""
