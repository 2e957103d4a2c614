"""Parts of the training loop: state, sampling, saving, evaluation and recording."""
