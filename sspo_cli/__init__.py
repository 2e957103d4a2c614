"""Soft Sequence Policy Optimization: the GRPO family compared on equal terms."""

__version__ = "0.1.0"
