"""Ray: jobs as tasks, and what they ask of a node."""
