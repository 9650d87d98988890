"""The model: transformer stacks, CSM around them, and its loss."""
