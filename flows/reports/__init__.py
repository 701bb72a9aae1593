"""What is said of results: records, plots, estimates."""
