"""Folders of weights that `prunella.speech_llm` reads: `reference` and `reference_pruned`."""
