"""Which model, strategy, rate and length suit a data set, from what frozen features tell of it."""
