"""lpt_jax: train language models, end to end, to write user profiles that recommend well."""

__version__ = "0.1.0"
