"""A model as a graph: captured, made functional, cut into modules."""
