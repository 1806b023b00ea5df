"""Live speech, measured: latency, hallucinations, endurance."""
