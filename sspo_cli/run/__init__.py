"""Parts of the training loop: state, saving, measuring, recording."""
