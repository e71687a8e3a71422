"""ONNX graphs in torch: the operators, and quantization-aware training of a graph, not of the network it came from."""
