"""What the library keeps of frames, sets, masters and cameras: its tables, subject by subject."""
