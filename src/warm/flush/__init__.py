"""A folder for PYTHONPATH, of interpreters started cold."""
