"""Image files, FITS plain and tile-compressed (`.fz`): the only readers and writers of them."""
