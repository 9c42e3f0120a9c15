"""Weights that are spread over processes: who holds which rows, and what is added up."""
