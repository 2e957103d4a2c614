"""Sweeps: a grid of trials, each run in a separate process, on this machine or on a Ray cluster."""

from sspo_cli.sweep.grid import load_sweep, print_trials
from sspo_cli.sweep.schedule import machine_for, place_for, refuse_shared_servers, run_sweep

__all__ = ["load_sweep", "machine_for", "place_for", "print_trials", "refuse_shared_servers", "run_sweep"]
