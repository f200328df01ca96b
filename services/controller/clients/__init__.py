"""What the controller calls: expert workers, the pods of all pools, the API server."""
