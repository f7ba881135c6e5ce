"""Weights that this project trained, one folder per model."""
