"""Classifiers: the zoo, model files, features, predictions."""
