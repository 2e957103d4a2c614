"""Tests of minutes to hours, run by `make test-long` alone."""
