"""Build of the optional native extension; all other metadata is in pyproject.toml."""

from setuptools import setup

setup()
