"""MLflow: runs, versions, aliases, what is kept."""
