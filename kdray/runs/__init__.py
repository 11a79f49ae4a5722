"""A run: from a config to a student, in a directory that can be killed and resumed at any moment."""
