"""The commands, one module for each group; each is listed in ``ctl.main``."""
