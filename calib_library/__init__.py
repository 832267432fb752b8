"""What a frame is, and where the masters are kept. Usable alone, from a notebook."""

__version__ = "0.1.0"
