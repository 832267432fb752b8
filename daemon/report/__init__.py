"""What people look at: the status, the preview, the log."""
