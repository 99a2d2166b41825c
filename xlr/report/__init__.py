"""Everything a run left -> one page."""
