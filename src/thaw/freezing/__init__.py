"""Freezing strategies, one word each, over the layer groups of any network."""
