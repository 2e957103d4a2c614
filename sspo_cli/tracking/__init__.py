"""The run folder, which is the truth, and its copies: console and wandb. A sink each."""
