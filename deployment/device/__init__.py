"""What runs on the device from the archive itself, before the runtime is installed: Python's standard library alone."""
