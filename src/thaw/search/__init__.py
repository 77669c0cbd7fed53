"""Sweeps: what is tried, each try in a process of its own, and the ledger of what came of it."""
