"""Trackers, one file each; see `kdray.observers.tracking`."""
