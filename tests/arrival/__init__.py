"""How frames arrive: every failure that a watcher must survive, by its number in that list.

The intake, the probe, the kernel and the file systems are the real ones. Where a test needs a
mount or a limit of the kernel it runs in a namespace of its own.
"""
