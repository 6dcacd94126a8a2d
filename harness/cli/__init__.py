"""The commands of `harness`, by what they are for. Heavy imports stand inside them, so that help is quick."""
