"""Measuring: models and checkpoints on benchmarks, outputs recorded elsewhere, and how results differ."""
