"""Training a student (or a local teacher): the loop, losses, augmentation."""
