"""Pretrained networks, each an ordered dict of layer groups."""
