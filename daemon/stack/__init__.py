"""Many lights of one target in one image."""
