"""Utilities that every layer may use: seeds, files, memory."""
