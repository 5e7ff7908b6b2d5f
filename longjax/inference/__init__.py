"""Generation with a sharded KV cache, and the memory of FoT."""
