"""The command `hadamard`: one file per verb, built with Click and rich."""
