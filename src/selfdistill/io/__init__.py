"""Catalog entries: the only Kedro datasets of the project."""
