"""A run in progress: its state, and when it saves, measures and records."""
