"""Files that edgecnn did not export: quantized, timed and examined without a recipe."""
