"""Widgets that make up the settings of the next runs."""
