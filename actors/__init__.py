"""The Ray layer: thin wrappers around the library, and the only place that says `ray.remote`."""
