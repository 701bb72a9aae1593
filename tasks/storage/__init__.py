"""S3: the store of results, objects at addresses, leases."""
