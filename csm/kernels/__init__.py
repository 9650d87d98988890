"""Hand-fused replacements for parts of the model, each with its measured gain. None is used unless it is installed."""
