"""Sampling: the engines that draw completions from the behaviour policy."""
