"""Manifests, word error rates with intervals, over anything that has `transcribe(samples) -> Transcript`. No torch."""
