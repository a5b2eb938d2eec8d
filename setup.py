from setuptools import setup

setup(license="MIT")  # not in pyproject.toml: setuptools before 77 and after 84 agree on no form of it there
