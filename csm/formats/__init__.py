"""Model formats: opening and writing model directories in our layout, Sesame's, Hugging Face's and PEFT's."""
