"""Classical test functions: of two parameters, of a few, of as many as you like."""
