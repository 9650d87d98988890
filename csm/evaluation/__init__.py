"""Evaluation of a model's speech: prompts, generation, word error rate and voice similarity, and the report."""
