"""Where jobs run, and where their results lie."""
