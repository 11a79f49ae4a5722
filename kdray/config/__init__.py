"""The config of an experiment: every field with its default and meaning, read from YAML."""
