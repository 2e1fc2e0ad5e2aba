"""microcluster: runs Python scripts on several machines. The package behind run.py and client.py."""

__version__ = "0.1.0"
