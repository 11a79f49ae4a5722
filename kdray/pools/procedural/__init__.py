"""Procedural pools: candidates that are drawn from random numbers, without an image."""
