"""Generation: cache, sampling, and the generator with Sesame's API."""
