"""The parts of the side-by-side benchmark; `benchmarks/peers.py` is its command."""
