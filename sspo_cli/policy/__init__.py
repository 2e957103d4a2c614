"""The policy π_θ: model, tokenizer, log-probabilities, learner, optimizer, cold start and checkpoints."""
