"""Errors, messages of one line, settings, bytes that verify themselves."""
