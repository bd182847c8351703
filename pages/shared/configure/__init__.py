"""Widgets for the settings of the next runs."""

FIELD_PREFIX, COMPARISON_PREFIX = "form_", "compare"  # prefixes of widget keys
