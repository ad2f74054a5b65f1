"""Rows for a model, from every format that DATA may name."""
