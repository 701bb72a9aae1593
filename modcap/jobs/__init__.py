"""The plan: pure, content-addressed jobs, and what each computes."""
