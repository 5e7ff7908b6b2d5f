"""longjax: long-context Llama training in JAX."""
