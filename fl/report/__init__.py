"""What a run was, to read after it: one HTML file that needs nothing beside it."""
