"""The delivered graphs: Q/DQ inserted, FP16 typed, suppression behind."""
