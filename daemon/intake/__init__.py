"""Finding out that a frame has arrived, whole."""
