"""Long-context continual pretraining of Llama in JAX."""

__version__ = '0.2.0'
