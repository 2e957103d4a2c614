"""Helpers shared by tests of the sandbox."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "codeact"
TIMEOUT = 3.0  # seconds per call; the machines that run this are slow and shared
