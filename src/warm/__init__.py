"""What interpreters load by path, never as part of this package: hooks for their start-up, and what makes them warm."""
