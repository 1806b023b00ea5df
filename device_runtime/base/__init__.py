"""What every room stands on: errors, files, cores, what is installed."""
