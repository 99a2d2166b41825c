"""Every setting of a run: its type, its default, and how it is checked. `xlr.configfile` reads and writes them."""
