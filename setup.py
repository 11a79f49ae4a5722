"""What pyproject.toml cannot say: the configs that come with kdray lie beside its packages, and are part of it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["kdray*", "actors*"]), "kdray.examples", "kdray.tune_configs"])
