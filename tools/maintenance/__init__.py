"""Tools for those who work on the project: they stay in the repository and are not installed."""
