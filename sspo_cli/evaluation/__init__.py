"""Evaluation of models and checkpoints on benchmarks, grading of recorded outputs, and comparison of results."""
