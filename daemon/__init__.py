"""The service that watches a camera's output folder all night."""
