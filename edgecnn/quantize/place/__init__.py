"""Where Q/DQ goes: the rules of each runtime, what an operator costs there, what stays float."""
