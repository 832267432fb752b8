"""A sky and a camera whose truth is known, for the demonstration and the tests."""
