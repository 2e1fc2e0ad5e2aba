"""A folder for PYTHONPATH, of interpreters that are to wait in their start-up."""
