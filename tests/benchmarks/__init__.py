"""How fast sspo is beside TRL and beside the bare passes of the same model. Not tests: nothing here is timed by pytest."""
