"""A microphone, and what comes of it while somebody speaks."""
