"""Two runs with the same cold start."""

import pytest
from filelock import FileLock

from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.policy.cold_start import _lock


def test_waiting_for_another_run_is_told_and_can_be_interrupted(tmp_path):
    interruption, notes = Interruption(), []
    with _lock(tmp_path / ".lock", interruption, notes.append):
        assert notes == []
    interruption.requested = True
    waiting = _lock(tmp_path / ".lock", interruption, notes.append)
    with FileLock(tmp_path / ".lock"), pytest.raises(Interrupted), waiting:
        raise AssertionError("both have the lock")
    assert notes == [f"another run is at the same cold start, {tmp_path}; waiting for it"]
