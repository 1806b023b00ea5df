"""prunella: measure, prune, heal, export and run speech LLMs on small machines."""

from prunella._version import __version__ as __version__
