"""The whole path of a model for one target, as one resumable plan: what decides it, its artefacts, its steps, the verb."""
