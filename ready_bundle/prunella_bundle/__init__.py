"""The bundle that prunella uses where none is named: `reference-pruned`, 4 bits, in the folder reference-pruned-int4."""
