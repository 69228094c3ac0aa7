"""Which tensor gets which format under a budget."""
