"""How fast and how large: every system in a process of its own, clips alternating between them."""
