"""Pages that need nothing but themselves: the report of a sweep, the explorer, and what they share."""
