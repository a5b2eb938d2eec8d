"""A plugin that can't be imported."""

raise ImportError("broken on purpose")
