"""Sweeps: many runs of one config with some fields changed, on one ledger. Nothing here imports Ray."""
