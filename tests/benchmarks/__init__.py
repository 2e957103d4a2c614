"""Benchmarks of sspo's speed, next to TRL's and to the bare passes of the same model. pytest runs none of them."""
