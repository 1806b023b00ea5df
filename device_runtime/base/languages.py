"""Languages as clients name them: by a code, or by the English names that Whisper's clients send."""

from __future__ import annotations

_NAMES = """
af afrikaans am amharic ar arabic as assamese az azerbaijani ba bashkir be belarusian bg bulgarian bn bengali
bo tibetan br breton bs bosnian ca catalan cs czech cy welsh da danish de german el greek en english es spanish
et estonian eu basque fa persian fi finnish fo faroese fr french gl galician gu gujarati ha hausa haw hawaiian
he hebrew hi hindi hr croatian hu hungarian hy armenian id indonesian is icelandic it italian ja japanese
jw javanese ka georgian kk kazakh km khmer kn kannada ko korean la latin lb luxembourgish ln lingala lo lao
lt lithuanian lv latvian mg malagasy mi maori mk macedonian ml malayalam mn mongolian mr marathi ms malay
mt maltese my myanmar ne nepali nl dutch no norwegian oc occitan pa punjabi pl polish ps pashto pt portuguese
ro romanian ru russian sa sanskrit sd sindhi si sinhala sk slovak sl slovenian sn shona so somali sq albanian
sr serbian su sundanese sv swedish sw swahili ta tamil te telugu tg tajik th thai tk turkmen tl tagalog
tr turkish tt tatar uk ukrainian ur urdu uz uzbek vi vietnamese yi yiddish yo yoruba yue cantonese zh chinese
"""
_WORDS = _NAMES.split()
_CODES = dict(zip(_WORDS[1::2], _WORDS[::2], strict=True))


def is_language(asked: str, code: str) -> bool:
    """Whether what a client names ("en-GB", "EN_us", "English") is the language of a BCP 47 code, whatever its region."""
    return primary_language(asked) == primary_language(code)


def primary_language(asked: str) -> str:
    """Its code without a region ("pt" of "Portuguese" and "pt-BR"); of a name that is not known the name, in lower case."""
    name = asked.strip().lower().replace("_", "-")
    return _CODES.get(name, name).partition("-")[0]
