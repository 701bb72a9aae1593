"""Plans run: rounds of Ray tasks, which Prefect shows as task runs."""
