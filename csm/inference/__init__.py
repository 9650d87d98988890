"""Generation: key/value cache, sampling, the generator with Sesame's API, and the forms that contexts come in."""
