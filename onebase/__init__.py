"""onebase: one DeepSeek-V3-shaped base model, carried from raw text to a V3-style and an R1-style model.

Importing this package imports neither torch nor any other heavy library.
"""

__version__ = "0.1.0"
