"""The operators: one op, one block; one family, one file."""
