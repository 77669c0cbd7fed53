"""Thaw: fine-tune pretrained networks, with a freeze contract that is checked while it runs."""
