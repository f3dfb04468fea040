"""Folders that hold grafts, and the import of other layouts."""
