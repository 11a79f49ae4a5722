"""Sources of images that are made by a pool."""
