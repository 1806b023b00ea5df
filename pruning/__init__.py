"""Which decoder layers and tokens are redundant, taking them out, and healing the gap in closed form."""

from prunella.pruning.blocks import Block as Block
from prunella.pruning.calibration import speech_calibration as speech_calibration
from prunella.pruning.prune import prune as prune
from prunella.pruning.prune_vocabulary import prune_vocabulary as prune_vocabulary
from prunella.pruning.redundancy import RedundancyMap as RedundancyMap
from prunella.pruning.redundancy import measure_redundancy as measure_redundancy
from prunella.pruning.selection import Evidence as Evidence
from prunella.pruning.selection import choose_blocks as choose_blocks
