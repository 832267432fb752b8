"""What happened to every frame: the daemon's tables."""
