"""Quantization-aware training: the graph is trained, not the network that it came from."""
