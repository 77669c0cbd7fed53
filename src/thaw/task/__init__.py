"""Tasks: what a network is trained for, and how well it does."""
