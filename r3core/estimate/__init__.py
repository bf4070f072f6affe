"""Memory that a run needs, computed from its model's configuration, and settings that make it fit."""
