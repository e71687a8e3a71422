"""Object detection: boxes and their readers, decoding, suppression, mean average precision."""
