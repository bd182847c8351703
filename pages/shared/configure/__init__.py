"""Widgets that make up the settings of the next runs."""

FIELD, COMPARED = "form_", "compare"  # what the keys of their widgets begin with
