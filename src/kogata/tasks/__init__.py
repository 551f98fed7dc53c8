"""Models to compress and the data to judge them by: built-in tasks, and task files for a user's own model and data."""
