"""The golden run: small runs of every method, recorded once and compared in CI."""
