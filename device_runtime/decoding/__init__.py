"""How tokens are chosen: greedy, beams, letters, phrases, and the guards."""
