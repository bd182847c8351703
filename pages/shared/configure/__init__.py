"""Widgets for the settings of the next runs."""

FIELD, COMPARED = "form_", "compare"  # prefixes of widget keys
