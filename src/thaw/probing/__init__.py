"""What frozen features tell of a task, without training the body: linear probes, neighbours, evidence."""
