"""From files and samples to speech: decoding, resampling, features, pauses, turns."""
