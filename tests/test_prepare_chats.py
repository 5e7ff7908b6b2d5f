"""prepare --synthesize and --score, as a user runs them."""
