from aclam.environments import register_when_imported

__version__ = "0.1.0"

register_when_imported()
