"""The written assignment, and how a configuration or a run is held against it. Each file checks one side of it."""
