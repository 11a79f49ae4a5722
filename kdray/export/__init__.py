"""A student as a file that other software runs: one module a format."""
