"""The run folder, and the sinks that mirror it: console and Weights & Biases."""
