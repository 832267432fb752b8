"""One light frame, from raw pixels to stars: pure functions on arrays."""
