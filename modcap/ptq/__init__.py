"""The method: capacity, selection, reconstruction, what follows them."""
