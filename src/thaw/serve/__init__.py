"""What is done with a finished run: evaluate it, predict with it, export it."""
