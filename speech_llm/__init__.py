"""The model as this project sees it: encoder, projector, decoder, prompt.

>>> from prunella.speech_llm import load, save_checkpoint
>>> model = load("reference")
>>> save_checkpoint(model, "out/reference")
"""

from prunella.speech_llm.checkpoint import load_checkpoint as load_checkpoint
from prunella.speech_llm.checkpoint import save_checkpoint as save_checkpoint
from prunella.speech_llm.config import SpeechLLMConfig as SpeechLLMConfig
from prunella.speech_llm.load import TextLLM as TextLLM
from prunella.speech_llm.load import load as load
from prunella.speech_llm.load import load_any as load_any
from prunella.speech_llm.model import SpeechLLM as SpeechLLM
