"""Data modules: each yields (inputs, targets) and is the only source of the class names."""
