"""Synthesised speech for `prunella heal`."""
