"""Trained models from files, without running what a file holds."""
