"""The laboratory: a tiny Llama from scratch, extended by each method."""
