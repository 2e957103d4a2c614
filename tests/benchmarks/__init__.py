"""The speed of sspo compared with TRL and with the bare passes of the same model. Not tests: nothing here is timed by pytest."""
