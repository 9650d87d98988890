"""Quantized linear layers through torchao: the schemes, and quantized tensors as plain ones."""
