"""Sphinx's configuration: `make html`."""

from importlib import metadata

project = "taskqueue"
author = "The taskqueue authors"
release = metadata.version("taskqueue")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
default_role = "code"
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
suppress_warnings = ["ref.python"]  # `type` in an annotation, where classes have members of that name, too
html_theme = "alabaster"
html_theme_options = {"description": "Hands work to worker processes on one or many hosts", "page_width": "60em"}
