"""The policy π_θ: its model and tokenizer, its log-probabilities, how it is optimized, started and stored."""
