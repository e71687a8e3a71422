"""edgecnn: a CNN, a dataset and the name of a device become an INT8 model proved on that device."""

__version__ = "0.1.0"
