"""Features from a Redis, asked with every request."""
