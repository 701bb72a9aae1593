"""Plans run: Prefect task runs that wait for Ray tasks."""
