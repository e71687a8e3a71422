"""What quantization does to a graph, measured: layer by layer, part by part, at the outputs."""
